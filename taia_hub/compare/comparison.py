"""Answers side by side, as values."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from taia_hub.compare.showing import to_html, to_markdown
from taia_hub.compare.words import Part, common_prefix, word_diff
from taia_hub.errors import SettingError, closest
from taia_hub.switch.modes import canonical_mode, mode_title


@dataclass(frozen=True)
class ComparedAnswer:
    """What a model says under one setting, so far or in full.

    Attributes:
        mode: Label of the setting; where models are compared, after the short name of the model, as in
            `"lora-a: attention"`.
        setting: The setting in the form that users write: a name, or a mapping of selectors to weights.
        text: The answer, without the prompt.
        tokens: Its tokens, with the one that ended it.
        finished: Why it ended: `"stop"` at the end of the answer, `"length"` at the greatest length; None while it goes
            on, and where it was cancelled.
        tokens_per_second: Speed of decoding after the first token; None before the second.
        entropy: Entropy in nats of the mode before each token; empty where it was not measured.
        log_likelihoods: Label of a mode to the log-likelihood in nats that it gives to this answer; empty where it was
            not measured.
        model: Hub id or folder of the model that wrote it, where models are compared; else None.
    """

    mode: str
    setting: str | Mapping[str, Any]
    text: str = ""
    tokens: tuple[int, ...] = ()
    finished: str | None = None
    tokens_per_second: float | None = None
    entropy: tuple[float, ...] = ()
    log_likelihoods: Mapping[str, float] = field(default_factory=dict)
    model: str | None = None

    @property
    def title(self) -> str:
        """What a person reads above it: the label, with the paper's name for a mode.

        Example:
            >>> ComparedAnswer("attention", "attention").title
            'attention (TAIA)'
        """
        model, colon, mode = self.mode.rpartition(": ")
        return f"{model}{colon}{mode_title(mode)}"

    def per_token(self, mode: str) -> float | None:
        """Returns the mean log-likelihood in nats that a mode gives to a token of it; None for no tokens."""
        return self.log_likelihoods[mode] / len(self.tokens) if self.tokens else None


@dataclass(frozen=True)
class Parting:
    """Where two answers first part.

    Attributes:
        token: Number of tokens that they share from their start.
        character: Number of characters that they share, up to the last whole word.
        same: Whether they are the same to the end.
    """

    token: int
    character: int
    same: bool


@dataclass(frozen=True)
class Comparison:
    """Answers to one prompt under several settings.

    Attributes:
        messages: The prompt, as messages with `role` and `content`.
        answers: One answer a setting, in the order that was asked for.
        generation: How was generated: `max_new_tokens`, `do_sample`, `seed` and so on.
        model: Hub id or folder of the TAIA repository.
        revision: Its commit, or None for a folder.
        notes: What the reader should know, such as that there is no chat template.
        seconds_to_first_token: Time from the call to the first token of all answers; None before it came.
    """

    messages: tuple[Mapping[str, str], ...]
    answers: tuple[ComparedAnswer, ...]
    generation: Mapping[str, Any] = field(default_factory=dict)
    model: str | None = None
    revision: str | None = None
    notes: tuple[str, ...] = ()
    seconds_to_first_token: float | None = None

    def __str__(self) -> str:
        return self.to_markdown()

    def _repr_html_(self) -> str:
        return self.to_html()

    @property
    def modes(self) -> tuple[str, ...]:
        """Labels of the settings."""
        return tuple(answer.mode for answer in self.answers)

    @property
    def finished(self) -> bool:
        """Whether every answer came to its end."""
        return all(answer.finished for answer in self.answers)

    @property
    def has_entropies(self) -> bool:
        """Whether the entropies of every answer were measured."""
        return bool(self.answers) and all(answer.entropy or not answer.tokens for answer in self.answers)

    @property
    def has_likelihoods(self) -> bool:
        """Whether every answer was read by all modes."""
        return bool(self.answers) and all(answer.log_likelihoods for answer in self.answers)

    def answer(self, mode: str) -> ComparedAnswer:
        """Returns the answer of a mode, by its label; the paper's names for modes are known too.

        Raises:
            SettingError: If no answer has this label.
        """
        for answer in self.answers:
            if answer.mode in (mode, canonical_mode(mode)):
                return answer
        raise SettingError(
            f"There is no answer of '{mode}'.{closest(mode, self.modes)}", f"Choose from {', '.join(self.modes)}."
        )

    def diff(self, mode: str, against: str) -> tuple[Part, ...]:
        """Compares the answer of a mode, which is shown, word by word with another's, as `word_diff` does.

        Raises:
            SettingError: If there is no such answer.
        """
        return word_diff(self.answer(mode).text, self.answer(against).text)

    def parting(self, mode: str, against: str) -> Parting:
        """Finds where the answers of two modes first part.

        Raises:
            SettingError: If there is no such answer.
        """
        first, second = self.answer(mode), self.answer(against)
        pairs = zip(first.tokens, second.tokens, strict=False)
        shared = next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(first.tokens), len(second.tokens)))
        same = first.tokens == second.tokens
        return Parting(shared, common_prefix(first.text, second.text), same)

    def to_json(self) -> dict[str, Any]:
        """Returns the comparison as JSON values.

        Example:
            >>> Comparison((), ()).to_json()["answers"]
            []
        """
        value: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return value

    def to_markdown(self, against: str | None = None) -> str:
        """Writes the comparison as Markdown; the others are compared word by word with the mode `against`, if any.

        Raises:
            SettingError: If there is no answer of `against`.
        """
        return to_markdown(self, against)

    def to_html(self, against: str | None = None) -> str:
        """Writes the comparison as HTML with its style, a column an answer; no prompt or answer can act in it.

        The others are compared word by word with the mode `against`, if any.

        Raises:
            SettingError: If there is no answer of `against`.
        """
        return to_html(self, against)
