"""Many prompts: read from a file, compared one after the other, kept in a file that a later run completes."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taia_hub.common.fingerprints import model_inputs, prompt_inputs
from taia_hub.common.jsonl import LineError, get_text, parse_object, read_lines, refuse
from taia_hub.common.progress import Progress
from taia_hub.compare.comparison import Comparison
from taia_hub.compare.keeping import Comparisons, Run
from taia_hub.compare.prompting import encode_prompt, read_messages
from taia_hub.compare.streaming import DEFAULT_MODES, compare, stream_compare
from taia_hub.errors import ConfigError
from taia_hub.results import ModelIdentity
from taia_hub.switch.settings import InferenceModules, parse_setting

_FORM = '{"prompt": "…"} or {"messages": [{"role": "user", "content": "…"}]}, with "id" if you like'


@dataclass(frozen=True)
class PromptLine:
    """A prompt of a file, with its line, from 1; a system message, if any, stands first."""

    number: int
    id: str | None
    messages: tuple[Mapping[str, str], ...]

    @property
    def name(self) -> str:
        """A text for tables: the id, or what the user said last."""
        return self.id or " ".join(self.messages[-1]["content"].split())


@dataclass(frozen=True)
class ComparedPrompt:
    """A prompt of a file with its answers."""

    line: PromptLine
    comparison: Comparison


def read_prompts(path: Path, system: str | None = None) -> tuple[PromptLine, ...]:
    """Reads a JSONL file of prompts; nothing is returned unless all of its lines are good.

    Each line holds a `prompt` or `messages`, and an `id` or none; `system` is the system message of every prompt. A
    `ConfigError` names the first bad lines with their reason.
    """
    _, found = read_lines(path, lambda text: _parse(text, system), _FORM)
    lines = tuple(PromptLine(number, id, messages) for number, (id, messages) in found)
    first: dict[str, int] = {}
    problems = [
        f"{path}:{line.number}: the id {line.id!r} is that of line {first[line.id]}"
        for line in lines
        if line.id is not None and first.setdefault(line.id, line.number) != line.number
    ]
    refuse(problems, _FORM)
    return lines


def compare_file(
    model: Any,
    tokenizer: Any,
    path: Path,
    out: Path,
    identity: ModelIdentity,
    modes: Sequence[InferenceModules] = DEFAULT_MODES,
    *,
    system: str | None = None,
    chat: bool = True,
    seed: int = 0,
    measures: bool = True,
    overwrite: bool = False,
    progress: Progress | None = None,
    **generation: Any,
) -> tuple[ComparedPrompt, ...]:
    """Compares the prompts of a file one after the other and appends each comparison to a file once it is made.

    What is in that file already is not made again, so an interrupted run goes on where it ended; half a line at its
    end is dropped.

    `identity` says which model this is, `modes` are different settings, one an answer, and the further keywords are
    those of `generate`. Returned are the prompts in order, with their answers.

    Raises:
        ConfigError: If a prompt is malformed or too long; if `out` is no file of comparisons, or one of another model
            or other settings. Nothing was run.
        OutOfMemoryError: If the memory does not suffice; what was compared before is kept.
    """
    prompts = read_prompts(path, system)
    if out.exists() and out.samefile(path):
        raise ConfigError(f"'{out}' is the file of the prompts.", "Choose another file with --out.")
    _check_lengths(path, prompts, model, tokenizer, chat)
    options = {"chat": chat, "seed": seed, "measures": measures, **generation}
    stream_compare(model, tokenizer, prompts[0].messages, modes, **options)  # checks modes and keywords, runs nothing
    inputs = {**prompt_inputs(tokenizer, chat=chat), **model_inputs(model), "device": model.device.type}
    modes = [model._taia_switch.resolve(mode).settings[0] for mode in modes]
    run = _run(identity, modes, options, inputs)
    with Comparisons(out, run, overwrite=overwrite) as kept:
        keys = _keys(prompts, run)
        missing = [(line, key) for line, key in zip(prompts, keys, strict=True) if key not in kept.found]
        done = len(prompts) - len(missing)
        for line, key in missing:
            if progress:
                progress("comparing", done, len(prompts))
            kept.append(key, line.id, compare(model, tokenizer, line.messages, modes, **options))
            done += 1
        if progress:
            progress("comparing", done, len(prompts))
        return tuple(ComparedPrompt(line, kept.found[key]) for line, key in zip(prompts, keys, strict=True))


def complete_file(
    path: Path,
    out: Path,
    identity: ModelIdentity | None,
    inputs: Mapping[str, str] | None,
    modes: Sequence[InferenceModules] = DEFAULT_MODES,
    *,
    system: str | None = None,
    **options: Any,
) -> tuple[ComparedPrompt, ...] | None:
    """Reads what `compare_file` would return where nothing is missing in `out`; else, or if it is not sure, None.

    Arguments and errors are those of `compare_file`, `inputs` what is known of what answers depend on beside the model;
    no model is needed.
    """
    if identity is None or inputs is None:
        return None
    prompts, run = read_prompts(path, system), _run(identity, modes, options, inputs)
    found, keys = Comparisons(out, run).found, _keys(prompts, run)
    if any(key not in found for key in keys):
        return None
    return tuple(ComparedPrompt(line, found[key]) for line, key in zip(prompts, keys, strict=True))


def _run(
    identity: ModelIdentity,
    modes: Sequence[InferenceModules],
    options: Mapping[str, Any],
    inputs: Mapping[str, str],
) -> Run:
    whole = {"chat": True, "seed": 0, "measures": True, **options}
    return Run(identity, tuple(parse_setting(mode).published for mode in modes), whole, inputs)


def _parse(text: str, system: str | None) -> tuple[str | None, tuple[Mapping[str, str], ...]]:
    item = parse_object(text)
    if "messages" in item and "prompt" in item:
        raise LineError("both 'prompt' and 'messages'")
    id = item.get("id")
    if id is not None and (isinstance(id, bool) or not isinstance(id, (str, int))):
        raise LineError(f"'id' is {id!r:.60}, neither text nor a whole number")
    if "messages" in item:
        prompt = item["messages"]
        if not isinstance(prompt, list):
            raise LineError(f"'messages' is {prompt!r:.60}, not a list")
    else:
        prompt = get_text(item, "prompt")
    try:
        messages = read_messages(prompt, system)
        json.dumps([id, messages], ensure_ascii=False).encode()
    except ConfigError as error:
        raise LineError(error.message.removesuffix(".")) from error
    except UnicodeEncodeError as error:
        raise LineError("half of a character (a lone surrogate)") from error
    return None if id is None else str(id), messages


def _check_lengths(path: Path, prompts: Sequence[PromptLine], model: Any, tokenizer: Any, chat: bool) -> None:
    problems = []
    for line in prompts:
        try:
            encode_prompt(model, tokenizer, line.messages, chat=chat)
        except ConfigError as error:
            problems.append(f"{path}:{line.number}: {error.message.removesuffix('.')}")
    refuse(problems, _FORM)


def _keys(prompts: Sequence[PromptLine], run: Run) -> list[str]:
    """Names each prompt under a run; equal prompts are told apart by their count."""
    seen: Counter[str] = Counter()
    keys = []
    for line in prompts:
        text = json.dumps([line.id, line.messages, run.modes, run.options], sort_keys=True)
        seen[text] += 1
        keys.append(hashlib.sha256(f"{seen[text]} {text}".encode()).hexdigest())
    return keys
