"""Local JSONL files as tasks of lm-evaluation-harness.

One item a line: `{"id", "question", "answer", "answer_type"}`, with an answer type of `choice`, `number`, `latex` or
`text`, and `choices`, `context`, `category`, `solution` where there are any. Options in `choices` are decided by the
likelihood of their letters, as in MMLU; everything else is generated and read by `scoring`.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taia_hub.common.imports import import_or_raise
from taia_hub.common.jsonl import LineError, get_text, parse_object, read_lines, refuse
from taia_hub.errors import ConfigError, closest
from taia_hub.evaluation import scoring

ANSWER_TYPES = ("choice", "number", "latex", "text")
SUFFIX = "\n\nPlease format the final answer at the end of the response as: The answer is {answer}."
VERSION = 1.0

_FORM = '{"id": …, "question": …, "answer": …, "answer_type": "choice"|"number"|"latex"|"text", ["choices": […]]}'
_OPTION = re.compile(r"^\s*\(([A-Z])\)", re.MULTILINE)
# Where a base model goes on with another question, it is stopped before it answers that.
_STOPS = ["</s>", "<|im_end|>", "<|endoftext|>", "Please format the final answer"]


@dataclass(frozen=True)
class JsonlTask:
    """A task made of a local file; `config` is what `TaskManager.load` and `simple_evaluate(tasks=[...])` take.

    `examples` counts the items that a prompt's examples are drawn from, without the item itself. `metric` is `"acc"`
    where letters are compared by likelihood, `"exact_match"` where answers are generated.
    """

    name: str
    config: Mapping[str, Any]
    path: Path
    sha256: str
    items: int
    examples: int
    metric: str

    def check_fewshot(self, num_fewshot: int) -> None:
        """Checks that there are enough examples."""
        if num_fewshot > self.examples:
            raise ConfigError(
                f"The task '{self.name}' has {self.examples} items to take examples from, not {num_fewshot}.",
                "Ask for fewer examples, or name a file of examples.",
            )


def read_jsonl_tasks(path: Path, *, fewshot_path: Path | None = None, name: str | None = None) -> tuple[JsonlTask, ...]:
    """Makes tasks of a JSONL file; every line is checked first.

    A file whose items are all of one kind is one task. One that holds options to be compared by likelihood beside
    answers to be generated is two, `NAME_likelihood` and `NAME_generation`. Examples are other items of the file, or
    those of `fewshot_path`; ones with the prompt of the item itself are never among them, wherever they come from.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "sums.jsonl"
        >>> _ = path.write_text('{"id": "1", "question": "1 + 1?", "answer": "2", "answer_type": "number"}')
        >>> task, = read_jsonl_tasks(path)
        >>> task.name, task.metric, task.items, task.examples
        ('sums', 'exact_match', 1, 0)
    """
    content, rows = _read(path)
    drawn = rows if fewshot_path is None else _read(fewshot_path)[1]
    name = name or re.sub(r"[^\w.-]+", "-", path.stem)
    kinds = [kind for kind in ("likelihood", "generation") if rows[kind]]
    tasks = []
    for kind in kinds:
        if not drawn[kind]:
            raise ConfigError(
                f"'{fewshot_path}' has no examples for the items of '{path}' that are scored by {kind}.",
                "Options in 'choices' need examples with 'choices', generated answers need examples without.",
            )
        own = f"{name}_{kind}" if len(kinds) > 1 else name
        copies = Counter(row["prompt"] for row in drawn[kind])
        tasks.append(
            JsonlTask(
                name=own,
                config=_config(own, kind, rows[kind], drawn[kind]),
                path=path,
                sha256=hashlib.sha256(content).hexdigest(),
                items=len(rows[kind]),
                examples=len(drawn[kind]) - max(copies[row["prompt"]] for row in rows[kind]),
                metric="acc" if kind == "likelihood" else "exact_match",
            )
        )
    return tuple(tasks)


def _score_item(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Scores one generated answer, as lm-eval's `process_results`."""
    value = scoring.score(doc["answer_type"], results[0], doc["answer"], doc["letters"])
    return {"exact_match": value}


def _config(name: str, kind: str, rows: list[dict[str, Any]], examples: list[dict[str, Any]]) -> dict[str, Any]:
    config: dict[str, Any] = {
        "task": name,
        "custom_dataset": _loader(rows),
        "test_split": "test",
        # lm-eval tells the sampler which item is asked only where the examples are of the same split.
        "fewshot_split": "test",
        "fewshot_config": {"sampler": _other_items(), "process_docs": lambda _: examples},
        # Names of columns, so that nothing a user wrote is taken for a template.
        "doc_to_text": "prompt",
        "doc_to_target": "target",
        "metadata": {"version": VERSION},
    }
    metric = {"aggregation": "mean", "higher_is_better": True}
    if kind == "likelihood":
        metrics = [{"metric": "acc", **metric}]
        return config | {"output_type": "multiple_choice", "doc_to_choice": "letters", "metric_list": metrics}
    return config | {
        "output_type": "generate_until",
        "process_results": _score_item,
        "generation_kwargs": {"do_sample": False, "max_gen_toks": 1024, "until": list(_STOPS)},
        "metric_list": [{"metric": "exact_match", **metric}],
    }


def _loader(rows: list[dict[str, Any]]) -> Callable[..., Any]:
    def load(**_: Any) -> Any:
        from datasets import Dataset, DatasetDict

        return DatasetDict({"test": Dataset.from_list(rows)})

    return load


@functools.cache
def _other_items() -> Any:
    """Makes lm-eval's kind of sampler that leaves out the item itself; lm-eval's own compare rows with their ids."""
    samplers: Any = import_or_raise("lm_eval.api.samplers", "eval", "Evaluation")

    class OtherItems(samplers.ContextSampler):
        """Draws examples whose prompt is not that of the item."""

        def __init__(self, df: Any = None, **keywords: Any) -> None:
            super().__init__(df, **keywords)
            self.copies = Counter(row["prompt"] for row in self.df)

        def sample(self, n: int, eval_doc: Any = None, df: Any = None, **_: Any) -> Any:
            prompt = eval_doc and eval_doc["prompt"]
            drawn = self.rnd.sample(self.df, n + self.copies[prompt])
            return [row for row in drawn if row["prompt"] != prompt][:n]

    return OtherItems


def _read(path: Path) -> tuple[bytes, dict[str, list[dict[str, Any]]]]:
    content, found = read_lines(path, _row, _FORM)
    rows: dict[str, list[dict[str, Any]]] = {"likelihood": [], "generation": []}
    lines: dict[str, int] = {}
    problems = []
    for number, row in found:
        if row["id"] in lines:
            problems.append(f"{path}:{number}: the id '{row['id']}' is that of line {lines[row['id']]}")
        lines.setdefault(row["id"], number)
        rows["generation" if isinstance(row["target"], str) else "likelihood"].append(row)
    refuse(problems, _FORM)
    return content, rows


def _row(line: str) -> dict[str, Any]:
    item = parse_object(line)
    for key in ("id", "answer"):
        if isinstance(item.get(key), (int, float)) and not isinstance(item[key], bool):
            item[key] = str(item[key])
    texts = {key: get_text(item, key).strip() for key in ("id", "question", "answer", "answer_type")}
    context, category, solution = (get_text(item, key, False).strip() for key in ("context", "category", "solution"))
    if texts["answer_type"] not in ANSWER_TYPES:
        known = ", ".join(ANSWER_TYPES)
        near = closest(texts["answer_type"], ANSWER_TYPES)
        raise LineError(f"the answer_type '{texts['answer_type']}' is none of {known}.{near}")
    prompt = f"{context}\n\n{texts['question']}" if context else texts["question"]
    row: dict[str, Any] = {**texts, "category": category, "letters": [], "prompt": prompt + SUFFIX}
    shown = f"${texts['answer']}$" if texts["answer_type"] == "latex" else texts["answer"]
    row["target"] = f"{solution}\nThe answer is {shown}.".lstrip("\n")
    if texts["answer_type"] == "choice":
        _add_letters(row, item.get("choices"), prompt)
    elif item.get("choices") is not None:
        raise LineError(f"'choices' with the answer_type '{texts['answer_type']}'; only 'choice' has them")
    if texts["answer_type"] == "number" and scoring.find_number(texts["answer"]) is None:
        raise LineError(f"the answer '{texts['answer']}' is no number")
    return row


def _add_letters(row: dict[str, Any], choices: Any, prompt: str) -> None:
    """Adds what a choice allows; with options of its own the target becomes the index of the right one."""
    answer = row["answer"].strip("() ")
    if choices is None:
        row["letters"] = list(dict.fromkeys(_OPTION.findall(prompt))) or list(scoring.LETTERS)
    else:
        if not isinstance(choices, list) or not 2 <= len(choices) <= len(scoring.LETTERS):
            raise LineError(f"'choices' is no list of 2 to {len(scoring.LETTERS)} options")
        if any(not isinstance(choice, str) or not choice.strip() for choice in choices):
            raise LineError("'choices' has an option that is empty or no text")
        row["letters"] = list(scoring.LETTERS[: len(choices)])
    if answer not in row["letters"]:
        shown = f"{row['letters'][0]} to {row['letters'][-1]}"
        raise LineError(f"the answer '{row['answer']}' is no letter from {shown}")
    if choices is not None:
        options = [f"{letter}. {choice.strip()}" for letter, choice in zip(row["letters"], choices, strict=True)]
        row["prompt"] = "\n".join([prompt, *options, "Answer:"])
        row["target"] = row["letters"].index(answer)
