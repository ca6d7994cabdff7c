"""What each mode of a model keeps of the base on general text: asked in one call, answered in a table and in words."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taia_hub.common.chat import Messages
from taia_hub.common.progress import Progress
from taia_hub.common.shown import Shown
from taia_hub.errors import SettingError
from taia_hub.results import TaskResults
from taia_hub.results.retained import Retained, retained, retention_table, sentences
from taia_hub.retaining.encoding import MAX_TOKENS, encode_texts
from taia_hub.retaining.measuring import measure
from taia_hub.retaining.tasks import blank_retention, task_results
from taia_hub.retaining.texts import Texts, read_texts
from taia_hub.switch.modes import canonical_mode
from taia_hub.switch.settings import InferenceModules, parse_setting

DEFAULT_MODES = ("attention", "ffn", "all")


@dataclass(frozen=True, repr=False)
class Retention(Shown):
    """What each mode keeps of the base.

    Attributes:
        task: The numbers of every text, as a task of a results file.
        notes: What the reader should know, such as that texts were cut off.
    """

    task: TaskResults
    notes: tuple[str, ...] = ()

    @property
    def modes(self) -> tuple[Retained, ...]:
        """What each mode keeps, with intervals, in the order that was asked for."""
        return retained(self.task)

    def __getitem__(self, mode: InferenceModules) -> Retained:
        """Returns what one mode keeps, by its setting or label; SettingError if it was not measured."""
        label = canonical_mode(mode) if isinstance(mode, str) else parse_setting(mode).label
        for one in self.modes:
            if one.mode == label:
                return one
        raise SettingError(f"The mode '{label}' was not measured.", f"Choose from {', '.join(self.task.modes)}.")

    def to_text(self) -> str:
        """Lays out by mode what is kept, the divergence from the base and the loss, and says it in words."""
        count = len(self.task.items)
        head = f"{self.task.title}: {count:,} texts, {sum(self.task.weights or ()):,} tokens"
        legend = (
            "kept: share of tokens whose most likely next token is the base's; KL(base || mode) and loss in nats a "
            "token;\n95 % intervals over the texts."
        )
        lines = [head, "", retention_table(self.modes), "", legend, "", *sentences(self.task), *self.notes]
        return "\n".join(lines)


def retention(
    model: Any,
    modes: InferenceModules | Sequence[InferenceModules] = DEFAULT_MODES,
    *,
    texts: Sequence[str | Messages] | str | Path | None = None,
    tokenizer: Any = None,
    max_tokens: int = MAX_TOKENS,
    progress: Progress | None = None,
    **loading: Any,
) -> Retention:
    """Measures what each mode keeps of the base on general text.

    That is the share of tokens whose most likely next token is the base's, KL(base || mode) and the loss, in nats a
    token, with paired intervals over the texts. The base is the mode `none`, so there is no second model.

    Args:
        model: A loaded TAIA language model, or the Hub id or folder of one.
        modes: Settings: mode names, or mappings of selectors to weights. The base stands before them: its loss is what
            theirs are compared with.
        texts: Texts or conversations, or a file of them: paragraphs, or JSON Lines of `{"text": …}` or of the items
            that `taia train` takes. Of a conversation the last answer is measured. By default 64 shipped texts.
            For a task of lm-eval: `taia_hub.evaluate(model, retention="mmlu")`.
        tokenizer: The tokenizer; by default the repository's, or the base model's.
        max_tokens: Most tokens of a text.
        progress: Called with `("retention", done, total)`, in texts.
        **loading: For a model that is given by name: `revision`, `dtype`, `device_map`, `token` and so on.

    Returns:
        What each mode keeps; printed it is a table and sentences.

    Raises:
        ConfigError: If texts are wrong, before the model is loaded; if logits overflow.
        SettingError: If a mode cannot be understood or cannot act on this model.
        RepositoryError: If a file or the model cannot be read.

    Example:
        ```python
        kept = taia_hub.retention("org/model-taia")
        print(kept, kept["attention"].kept.value)
        ```
    """
    settings = _read_modes(modes)
    found = read_texts(texts)
    from taia_hub.modeling_taia import load_given

    model = load_given(model, loading)
    resolved = (model._taia_switch.resolve(setting).settings[0] for setting in settings)
    settings = list({setting.label: setting.value for setting in resolved}.values())
    if tokenizer is None:
        from taia_hub.repository.tokenizer import load_tokenizer

        tokenizer = load_tokenizer(model)
    return measured_on(model, tokenizer, found, settings, max_tokens=max_tokens, progress=progress)


def measured_on(
    model: Any,
    tokenizer: Any,
    texts: Texts,
    settings: Sequence[InferenceModules],
    *,
    max_tokens: int = MAX_TOKENS,
    chat: bool = True,
    progress: Progress | None = None,
) -> Retention:
    """Measures what settings keep on texts that were read; texts without a token to measure are left out."""
    rows, notes = encode_texts(model, tokenizer, texts.items, max_tokens=max_tokens, chat=chat)
    kept = [(item, row) for item, row in zip(texts.items, rows, strict=True) if row.measured]
    start = time.perf_counter()

    def advance(done: int, total: int) -> None:
        if progress:
            progress("retention", done, total)

    losses = measure(model, [row for _, row in kept], settings, progress=advance)
    blank = blank_retention(texts, [item for item, _ in kept], max_tokens=max_tokens)
    return Retention(task_results(blank, settings, losses, seconds=time.perf_counter() - start), notes)


def _read_modes(modes: InferenceModules | Sequence[InferenceModules]) -> list[InferenceModules]:
    """Reads one or more settings, each once, after the base."""
    given = list(modes) if isinstance(modes, (list, tuple)) else [modes]
    if not given:
        raise SettingError("No mode was given.", f"Leave `modes` out for {', '.join(DEFAULT_MODES)}.")
    return list({setting.label: setting.value for setting in map(parse_setting, ["none", *given])}.values())
