"""What a person asks of a card: the options of `taia card`."""
# ruff: noqa: RUF009 - `asked` makes a field

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from taia_hub.common.fields import asked, documented


@documented
@dataclass(frozen=True)
class CardRequest:
    """What a person asks of a card; `given` are the metadata keys among it."""

    repo_id: str | None = asked(None, "Hub id that the card of a folder shows.")
    template: str = asked("model_card", "Template: model_card, short, or one of --template-dir.", flags="--variant")
    template_dir: Path | None = asked(
        None, "Templates of your own, for the whole card or any block of it; they come before ours.", metavar="DIR"
    )
    license: str | None = asked(None, "Licence; the base model's by default.")
    license_name: str | None = asked(None, "Its name, with --license other.")
    license_link: str | None = asked(None, "Link to it, with --license other.")
    language: tuple[str, ...] = asked((), "Code of a language, as in en; repeat it.")
    datasets: tuple[str, ...] = asked((), "Hub id of a training data set; repeat it.", flags="--dataset")
    tags: tuple[str, ...] = asked((), "One more tag; repeat it.", flags="--tag")
    widget: tuple[str, ...] = asked((), "Example prompt for the Hub's page; repeat it.", flags="--prompt")
    results: Path | None = asked(None, "Results of `taia eval`, instead of the repository's.", metavar="FILE")
    analysis: Path | None = asked(None, "Numbers of `taia analyze`, instead of the repository's.", metavar="FILE")
    training: Path | None = asked(None, "How it was trained, as JSON, instead of the repository's.", metavar="FILE")
    tuning: Path | None = asked(None, "What `taia tune` found, instead of the repository's.", metavar="FILE")
    figures: Path | None = asked(
        None, "Figures of `taia analyze` or `taia tune`, beside the repository's.", metavar="DIR"
    )

    @property
    def given(self) -> tuple[str, ...]:
        """The metadata keys that were asked for."""
        names = ("license", "license_name", "license_link", "language", "datasets", "tags", "widget")
        return tuple(name for name in names if getattr(self, name))
