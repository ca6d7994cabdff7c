"""Several models side by side: each is loaded, answers the prompt, and makes room for the next."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taia_hub import hub
from taia_hub.common.chat import Messages
from taia_hub.common.devices import fitting, free_memory
from taia_hub.compare.comparison import ComparedAnswer, Comparison
from taia_hub.compare.streaming import stream_compare
from taia_hub.errors import ConfigError
from taia_hub.hub.config import is_taia
from taia_hub.hub.layout import KINDS
from taia_hub.repository.update_files import open_repository
from taia_hub.switch.settings import Setting, parse_setting

_NOTE = "How likely a model finds another's answer is left out: one model is in memory at a time."


@dataclass(frozen=True)
class Candidate:
    """A model that is compared with others; what is known of it before its weights are.

    Attributes:
        name: Hub id or folder.
        title: A short name that no other has.
        settings: The settings under which it answers; none for a plain model, which has no update.
    """

    name: str
    title: str
    settings: tuple[Setting, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels of its columns, as in `"lora-a: attention"`."""
        return tuple(f"{self.title}: {setting.label}" for setting in self.settings) or (self.title,)


def find_candidates(
    names: Sequence[str], modes: Sequence[Any] = (), *, token: str | bool | None = None
) -> tuple[Candidate, ...]:
    """Finds TAIA repositories, PEFT adapters and plain models by their configurations; no weights are fetched.

    Args:
        names: Hub ids or folders, each once.
        modes: Settings under which each of them answers; by default the one that it publishes.
        token: Access token.

    Raises:
        ConfigError: If a model comes twice, or holds no model.
        RepositoryError: If one does not exist or cannot be reached.
        SettingError: If a mode is not understood.
    """
    wanted, places = tuple(map(parse_setting, modes)), [_place(name) for name in names]
    if again := [name for at, name in enumerate(names) if places[at] in places[:at]]:
        raise ConfigError(f"The model '{again[0]}' was given twice.", "Give each once; --mode is for several modes.")
    titles = [Path(place).name for place in places]
    access = hub.HubAccess(token=token)
    return tuple(
        Candidate(name, name if titles.count(title) > 1 else title, _settings(name, wanted, access))
        for name, title in zip(names, titles, strict=True)
    )


def load_plain(name: str, **keywords: Any) -> Any:
    """Loads a model without an update, as a model whose switch has nothing to switch; keywords are transformers'."""
    from taia_hub.configuration_taia import TAIAConfig
    from taia_hub.modeling_taia import TAIAForCausalLM
    from taia_hub.repository.loading import Loaded
    from taia_hub.switch.switch import Switch
    from taia_hub.weights.base_model import load_base

    base = hub.resolve_base(name, keywords.pop("revision", None), hub.HubAccess(token=keywords.get("token")))
    with fitting():
        model = load_base(base, what="model", **keywords)
    config = TAIAConfig(base_model_name_or_path=name, inference_modules="none")
    switch = Switch((), "none")
    switch.published = config
    loaded: Any = Loaded(model, config, None, switch)  # type: ignore[arg-type]
    return TAIAForCausalLM.from_loaded(loaded)


def stream_models(
    candidates: Sequence[Candidate],
    load: Callable[[Candidate], tuple[Any, Any]],
    prompt: str | Messages,
    *,
    measures: bool = True,
    **options: Any,
) -> Generator[Comparison, None, None]:
    """Answers one prompt by several models, one after the other, and yields all answers so far after every token.

    Each model is forgotten before the next is loaded. Its modes answer in one batch; of the measures it has entropies.

    Args:
        candidates: The models, of `find_candidates`.
        load: Loads the model and the tokenizer of a candidate.
        prompt: As of `stream_compare`.
        measures: Whether entropies are measured.
        **options: Further keywords of `stream_compare`.

    Yields:
        The comparison so far; the last one is finished.

    Raises:
        TAIAError: As of `stream_compare`, and what `load` raises.
    """
    answers = {
        label: ComparedAnswer(label, setting.value if setting else "none", model=one.name)
        for one in candidates
        for label, setting in zip(one.labels, one.settings or (None,), strict=True)
    }
    notes: dict[str, None] = dict.fromkeys([_NOTE] if measures else [])
    first: float | None = None
    for candidate in candidates:
        model, tokenizer = load(candidate)
        settings = [setting.value for setting in candidate.settings] or ["none"]
        states = stream_compare(model, tokenizer, prompt, settings, measures=measures, **options)
        with contextlib.closing(states):
            for state in states:
                for label, answer in zip(candidate.labels, state.answers, strict=True):
                    answers[label] = dataclasses.replace(answer, mode=label, model=candidate.name, log_likelihoods={})
                first = first or state.seconds_to_first_token
                notes |= dict.fromkeys(state.notes)
                yield dataclasses.replace(
                    state,
                    answers=tuple(answers.values()),
                    model=None,
                    revision=None,
                    notes=tuple(notes),
                    seconds_to_first_token=first,
                )
        del model, tokenizer, states
        free_memory()


def _place(name: str) -> str:
    """Returns the path of a folder, or a Hub id, in a form of which there is one."""
    return str(Path(name).resolve()) if Path(name).is_dir() else name.rstrip("/")


def _settings(name: str, wanted: tuple[Setting, ...], access: hub.HubAccess) -> tuple[Setting, ...]:
    configs = [kind.config for kind in KINDS.values()]
    folder = hub.fetch(name, (hub.CONFIG, *configs), access=access, what="model").folder
    update = any((folder / config).is_file() for config in configs)
    if not update and (folder / hub.CONFIG).is_file() and not is_taia(hub.read_json(folder / hub.CONFIG)):
        return ()
    published = open_repository(name, access, what="model").config.setting
    return tuple(dict.fromkeys(one.resolved(published) for one in wanted)) or (published,)
