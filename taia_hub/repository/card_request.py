"""What a person asks of a card: the options of `taia card`."""
# ruff: noqa: RUF009 - `_asked` makes a field

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from taia_hub.common.documenting import documented


def _asked(default: Any, text: str, flags: str | None = None, metavar: str | None = None) -> Any:
    """Makes a field with what `taia_hub.cli.options` shows of it."""
    return field(default=default, metadata={"help": text, "flags": flags, "metavar": metavar})


@documented
@dataclass(frozen=True)
class CardRequest:
    """What a person asks of a card; `given` are the metadata keys among it."""

    repo_id: str | None = _asked(None, "Hub id that the card of a folder shows.")
    template: str = _asked("model_card", "Template: model_card, short, or one of --template-dir.", "--variant")
    template_dir: Path | None = _asked(
        None, "Templates of your own, for the whole card or any block of it; they come before ours.", metavar="DIR"
    )
    license: str | None = _asked(None, "Licence; the base model's by default.")
    license_name: str | None = _asked(None, "Its name, with --license other.")
    license_link: str | None = _asked(None, "Link to it, with --license other.")
    language: tuple[str, ...] = _asked((), "Code of a language, as in en; repeat it.")
    datasets: tuple[str, ...] = _asked((), "Hub id of a training data set; repeat it.", "--dataset")
    tags: tuple[str, ...] = _asked((), "One more tag; repeat it.", "--tag")
    widget: tuple[str, ...] = _asked((), "Example prompt for the Hub's page; repeat it.", "--prompt")
    results: Path | None = _asked(None, "Results of `taia eval`, instead of the repository's.", metavar="FILE")
    analysis: Path | None = _asked(None, "Numbers of `taia analyze`, instead of the repository's.", metavar="FILE")
    training: Path | None = _asked(None, "How it was trained, as JSON, instead of the repository's.", metavar="FILE")
    figures: Path | None = _asked(None, "Figures of `taia analyze`, beside the repository's.", metavar="DIR")

    @property
    def given(self) -> tuple[str, ...]:
        """The metadata keys that were asked for."""
        names = ("license", "license_name", "license_link", "language", "datasets", "tags", "widget")
        return tuple(name for name in names if getattr(self, name))
