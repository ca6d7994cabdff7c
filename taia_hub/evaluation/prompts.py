"""Files of prompts as tasks: refusals and attacks, and preferences against reference answers."""

from __future__ import annotations

import hashlib
import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taia_hub.common.chat import chat_tokens, check_ids, embedding_rows, padding_id
from taia_hub.common.jsonl import get_text, parse_object, read_lines
from taia_hub.errors import ConfigError, closest
from taia_hub.evaluation.harness import Advance, Measured, Session
from taia_hub.evaluation.safety import (
    Judge,
    PreferenceJudge,
    attack_success_rate,
    read_prompts,
    refusal_rate,
    win_rate,
)
from taia_hub.results import DatasetSource, TaskResults

_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # as lm-eval ranks them

Scorer = Callable[[list[str]], dict[str, tuple[float, ...]]]


@dataclass(frozen=True)
class PromptTask:
    """Prompts that are answered under a mode, and then scored.

    `blank` is the task's results without any mode; `score` takes N answers and gives, by metric, one value each. The
    keywords of generation go before `max_new_tokens`.
    """

    blank: TaskResults
    prompts: tuple[str, ...]
    score: Scorer
    max_new_tokens: int
    path: Path

    def run(self, session: Session, advance: Advance) -> Measured | None:
        """Answers the prompts under the model's present setting, and scores the answers."""
        if session.lm.rank:
            return None
        settings = session.settings
        import torch

        torch.manual_seed(settings.seed)
        outputs = generate_responses(
            session.model,
            session.tokenizer,
            self.prompts,
            max_new_tokens=self.max_new_tokens,
            batch_size=session.batch_size if isinstance(session.batch_size, int) else 8,
            chat_template=settings.chat_template,
            system_instruction=settings.system_instruction,
            gen_kwargs=settings.gen_kwargs,
            progress=lambda done, total: advance(done / total),
        )
        values = self.score(outputs)
        return Measured({metric: math.fsum(row) / len(row) for metric, row in values.items()}, values)


def safety_task(
    path: str | Path, *, judge: Judge | None = None, max_new_tokens: int = 512, limit: int | None = None
) -> PromptTask:
    """Makes a task that measures how many attacks succeed and how many prompts are refused.

    Args:
        path: File of prompts: JSONL with `"prompt"`, or one prompt a line.
        judge: Tells of a prompt and an answer whether the attack succeeded. Without one the paper's rule decides: an
            attack succeeds where the answer holds no phrase of refusal.
        max_new_tokens: Longest answer in tokens.
        limit: Most prompts, or None for all.

    Returns:
        A task for `evaluate(units=[...])`, with the metrics `attack_success_rate` (lower is better) and
        `refusal_rate`.

    Raises:
        RepositoryError: If the file cannot be read.
        ConfigError: If a line is wrong.
    """
    path = Path(path)
    prompts = read_prompts(path)[:limit]

    def score(outputs: list[str]) -> dict[str, tuple[float, ...]]:
        return {
            "attack_success_rate": attack_success_rate(outputs, prompts=prompts, judge=judge).values,
            "refusal_rate": refusal_rate(outputs).values,
        }

    blank = _blank(
        path, "attack_success_rate", "Attack success", prompts, _named(judge), max_new_tokens, higher_is_better=False
    )
    return PromptTask(blank, prompts, score, max_new_tokens, path)


def win_rate_task(
    path: str | Path, *, judge: PreferenceJudge, max_new_tokens: int = 512, limit: int | None = None
) -> PromptTask:
    """Makes a task that measures how often answers are preferred to reference answers.

    Args:
        path: JSONL with `"prompt"` and `"reference"`.
        judge: Tells of a prompt and two answers how far the first is preferred, from 0 to 1.
        max_new_tokens: Longest answer in tokens.
        limit: Most prompts, or None for all.

    Returns:
        A task for `evaluate(units=[...])`, with the metric `win_rate`.

    Raises:
        RepositoryError: If the file cannot be read.
        ConfigError: If a line is wrong.
    """
    path = Path(path)
    pairs = [pair for _, pair in read_lines(path, _pair, '{"prompt": …, "reference": …}')[1]][:limit]
    prompts, references = tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs)

    def score(outputs: list[str]) -> dict[str, tuple[float, ...]]:
        return {"win_rate": win_rate(prompts, outputs, references, judge).values}

    items = tuple(map("\0".join, pairs))
    blank = _blank(path, "win_rate", "Win rate", items, _named(judge), max_new_tokens)
    return PromptTask(blank, prompts, score, max_new_tokens, path)


def prompt_units(
    prompts: Path | None = None,
    judge: str | None = None,
    win_rate: Path | None = None,
    preference_judge: str | None = None,
    *,
    limit: int | None = None,
) -> list[PromptTask]:
    """Makes the tasks that `taia eval` is asked for: files of prompts, and judges as `module:function`."""
    if judge and not prompts:
        raise ConfigError("--judge judges nothing without prompts.", "Name a file with --prompts.")
    if preference_judge and not win_rate:
        raise ConfigError("--preference-judge judges nothing without answers.", "Name a file with --win-rate.")
    if win_rate and not preference_judge:
        raise ConfigError("--win-rate needs a judge.", "Name one: --preference-judge module:function.")
    units = []
    if prompts:
        units.append(safety_task(prompts, judge=find_judge(judge) if judge else None, limit=limit))
    if win_rate and preference_judge:
        units.append(win_rate_task(win_rate, judge=find_judge(preference_judge), limit=limit))
    return units


def find_judge(name: str) -> Any:
    """Imports a judge from `module:function`, also of the working folder in `taia eval`; ConfigError if there is none.

    Example:
        >>> find_judge("math:isclose")(1.0, 1.0)
        True
    """
    module, _, function = name.partition(":")
    hint = "Give module:function, as in judges:is_harmful for a function of judges.py in this folder."
    if not module or not function:
        raise ConfigError(f"The judge '{name}' names no function.", hint)
    try:
        judge = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"The judge '{name}' cannot be imported: {error}.", hint) from error
    if not callable(judge):
        raise ConfigError(f"The judge '{name}' is no function.", hint)
    return judge


def generate_responses(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    mode: Any = None,
    *,
    max_new_tokens: int = 512,
    batch_size: int = 8,
    chat_template: bool | None = None,
    system_instruction: str | None = None,
    gen_kwargs: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Answers N prompts, greedily unless `gen_kwargs` say otherwise; `mode` None is the model as it stands.

    The chat template is used where there is one, unless `chat_template` is False; without it the system message stands
    before the prompt. `gen_kwargs` are as lm-eval takes them: `max_gen_toks`, `until`, and those of `generate`.
    `progress` is called with the number done and N after every batch.
    """
    before = [{"role": "system", "content": system_instruction}] if system_instruction else []
    asked = ([*before, {"role": "user", "content": prompt}] for prompt in prompts)
    rows = [chat_tokens(tokenizer, messages, chat=chat_template is not False) for messages in asked]
    keywords, stops = _keywords(gen_kwargs or {}, max_new_tokens)
    keywords |= {} if mode is None else {"inference_modules": mode}
    outputs: list[str] = []
    for start in range(0, len(prompts), batch_size):
        batch = rows[start : start + batch_size]
        outputs += [_until(text, stops) for text in _generate(model, tokenizer, batch, keywords)]
        if progress:
            progress(len(outputs), len(prompts))
    return outputs


def _keywords(gen_kwargs: Mapping[str, Any], max_new_tokens: int) -> tuple[dict[str, Any], list[str]]:
    """Returns keywords of `generate`, and the texts that end an answer."""
    from transformers import GenerationConfig

    given = dict(gen_kwargs)
    until = given.pop("until", None) or []
    length = [given.pop(name) for name in _LENGTHS if name in given]
    known = GenerationConfig().to_dict().keys()
    unknown = [name for name in given if name not in known]
    if unknown:
        raise ConfigError(
            f"generate() has no keyword '{unknown[0]}'.{closest(unknown[0], known)}", "Leave it out of gen_kwargs."
        )
    # The sampling values of the model's own generation settings would draw a warning beside do_sample=False.
    sampling = bool(given.setdefault("do_sample", bool(given.get("temperature"))))
    values = {} if sampling else {"temperature": None, "top_p": None, "top_k": None}
    keywords = {"num_beams": 1, **given, **values, "max_new_tokens": length[0] if length else max_new_tokens}
    return keywords, [until] if isinstance(until, str) else list(until)


def _until(text: str, stops: Sequence[str]) -> str:
    for stop in stops:
        text = text.partition(stop)[0]
    return text.strip()


def _generate(model: Any, tokenizer: Any, ids: list[list[int]], keywords: Mapping[str, Any]) -> list[str]:
    import torch

    rows = embedding_rows(model)
    for row in ids:
        check_ids(tokenizer, row, rows)
    pad = padding_id(tokenizer, rows, model.generation_config.pad_token_id)
    length = max(map(len, ids))
    inputs = torch.tensor([[pad] * (length - len(row)) + list(row) for row in ids], device=model.device)
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in ids], device=model.device)
    tokens = model.generate(input_ids=inputs, attention_mask=mask, pad_token_id=pad, **keywords)
    return list(tokenizer.batch_decode(tokens[:, length:], skip_special_tokens=True))


def _blank(
    path: Path,
    metric: str,
    title: str,
    items: tuple[str, ...],
    version: str,
    max_new_tokens: int,
    *,
    higher_is_better: bool = True,
) -> TaskResults:
    return TaskResults(
        name=f"{metric}:{path.stem}",
        title=f"{title} ({path.stem})",
        num_fewshot=0,
        fewshot_asked=None,
        metric=metric,
        higher_is_better=higher_is_better,
        dataset=DatasetSource(path.name, sha256=hashlib.sha256(path.read_bytes()).hexdigest()),
        version=version,
        prompts_sha256=hashlib.sha256(f"max_new_tokens={max_new_tokens}".encode()).hexdigest(),
        items=tuple(hashlib.sha256(item.encode()).hexdigest()[:16] for item in items),
    )


def _named(judge: Any) -> str:
    """Names the judge in the results: another judge's numbers may not stand beside its own."""
    if judge is None:
        return "refusal phrases"
    return f"{getattr(judge, '__module__', '?')}:{getattr(judge, '__qualname__', type(judge).__name__)}"


def _pair(line: str) -> tuple[str, str]:
    item = parse_object(line)
    return get_text(item, "prompt"), get_text(item, "reference")
