"""What each mode keeps of the base, as a task of an evaluation; the texts may be those of a task of lm-eval."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taia_hub import hub
from taia_hub.common.chat import Messages
from taia_hub.common.labels import Encoded
from taia_hub.common.text_tables import amount
from taia_hub.errors import ConfigError
from taia_hub.evaluation.catalogue import load_tasks
from taia_hub.evaluation.harness import Advance, HarnessTask, Measured, Session
from taia_hub.evaluation.options import EvaluationOptions
from taia_hub.results import DatasetSource, TaskResults
from taia_hub.retaining.encoding import encode_texts
from taia_hub.retaining.measuring import measure
from taia_hub.retaining.tasks import blank_retention, scores_of
from taia_hub.retaining.texts import FILES, Texts, named, read_texts

Asked = bool | str | Path | Sequence[str | Messages]
"""True for the shipped texts, False for none; a file, the name of a task or group of lm-eval, or a list of texts."""

_MOST = 256  # texts of a group of lm-eval, which may have 14,000 items

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RetentionTask:
    """Texts on which all modes are measured together; `blank` is the task's results without any mode."""

    blank: TaskResults
    rows: tuple[Encoded, ...]

    def run_together(
        self, session: Session, settings: Mapping[str, Any], advance: Advance
    ) -> Mapping[str, Measured] | None:
        """Measures settings, by their labels, in one pass; None in processes other than the first."""
        if session.lm.rank:
            return None
        found = measure(
            session.model, self.rows, list(settings.values()), progress=lambda done, total: advance(done / total)
        )
        return {
            label: Measured(*scores_of(one), weights=one.tokens) for label, one in zip(settings, found, strict=True)
        }


def read_retention(asked: Asked, options: EvaluationOptions) -> Texts | None:
    """Reads the texts that retention is asked on, before a model is loaded; None where it is not asked for.

    `options` say how many, and where more tasks of lm-eval are. ConfigError if they are wrong.
    """
    if asked is False or asked is None:
        return None
    if asked is True or asked == "":
        texts = read_texts()
    elif isinstance(asked, str) and not names_file(asked):
        return _of_tasks(asked, options)
    else:
        texts = read_texts(asked)
    if twice := len(texts.items) - len((once := texts.distinct()).items):
        _log.warning("%s: %s left out: each counts once.", texts.title, amount(twice, "repeated text"))
        texts = once
    return texts.first(options.limit)


def retention_task(texts: Texts, model: Any, tokenizer: Any, *, chat: bool) -> RetentionTask:
    """Makes a task of texts for a model; what was cut or left out is logged."""
    rows, notes = encode_texts(model, tokenizer, texts.items, chat=chat)
    for note in notes:
        _log.warning("%s: %s", texts.title, note)
    kept = [(item, row) for item, row in zip(texts.items, rows, strict=True) if row.measured]
    return RetentionTask(blank_retention(texts, [item for item, _ in kept]), tuple(row for _, row in kept))


def names_file(name: str) -> bool:
    """Tells whether texts are asked for of a file, which need not be there, rather than of a task of lm-eval.

    Example:
        >>> names_file("letters.txt"), names_file("mmlu")
        (True, False)
    """
    return Path(name).expanduser().exists() or hub.is_path(name) or Path(name).suffix.lower() in FILES


def _of_tasks(name: str, options: EvaluationOptions) -> Texts:
    """Takes the first questions of each task of a group, with their right answers, as texts."""
    found, _ = load_tasks(EvaluationOptions((name,), include_path=options.include_path))
    each = options.limit or max(1, _MOST // max(1, len(found)))
    items = [text for task in found for text in _texts_of(task, each)]
    if not items:
        raise ConfigError(f"The task '{name}' has no texts.", "Choose another one, or give a file of texts.")
    content = json.dumps(items, ensure_ascii=False)
    return named(name, items, DatasetSource(name, sha256=hashlib.sha256(content.encode()).hexdigest()))


def _texts_of(task: HarnessTask, count: int) -> list[str]:
    """Writes items of a task as lm-eval writes its examples: the question, and behind it the answer."""
    inner, texts = task.task, []
    for number, doc in enumerate(inner.eval_docs):
        if number == count:
            break
        question, answer = inner.doc_to_text(doc), inner.doc_to_target(doc)
        choices = inner.doc_to_choice(doc) if inner.config.doc_to_choice else None
        if inner.multiple_input and choices:
            question, choices = choices[question], None
        turns = inner.build_qa_turn(q=question, c=choices, a=answer, tgt_delim=inner.config.target_delimiter)
        texts.append("".join(turn.to_text() for turn in turns).strip())
    return [text for text in texts if text]
