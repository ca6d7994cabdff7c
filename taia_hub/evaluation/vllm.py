"""The commands that evaluate a TAIA repository on vLLM, by lm-eval's own command line."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from taia_hub import hub
from taia_hub.common.devices import choose_device
from taia_hub.engines import config_refusals, largest_rank, saved_dtype, taia_command, vllm_rank
from taia_hub.engines.rules import VLLM_RANKS
from taia_hub.errors import ConfigError, UnsupportedUpdateError
from taia_hub.evaluation.catalogue import check_names
from taia_hub.evaluation.tasks import tasks_dir
from taia_hub.hub.layout import PEFT
from taia_hub.repository.update_files import open_repository, own_tokenizer
from taia_hub.switch.settings import InferenceModules, parse_setting


def vllm_commands(
    repo: str,
    tasks: Sequence[str],
    modes: Sequence[InferenceModules],
    *,
    revision: str | None = None,
    token: str | None = None,
    limit: int | None = None,
    num_fewshot: Sequence[int | None] = (None,),
    seed: int = 1234,
    chat_template: bool = True,
    system_instruction: str | None = None,
    max_gen_toks: int | None = None,
) -> list[str]:
    """Writes the shell commands that evaluate a repository on vLLM, a mode at a time.

    vLLM applies an adapter whole: `none` is the base model alone, and `all` the adapter of the repository where vLLM
    takes that. Every other mode is exported first, into a folder of the working folder that the next command names.

    Args:
        repo: Hub id or folder of a TAIA repository.
        tasks: Names of lm-eval's tasks or of this package's, or paths of YAML files.
        modes: Settings.
        revision: Revision of the repository.
        token: Access token.
        limit: Most items a task.
        num_fewshot: Numbers of examples; None for each task's own.
        seed: Seed of the examples.
        chat_template: Whether prompts go through the chat template.
        system_instruction: System message.
        max_gen_toks: Longest answer in tokens, where the tasks' own shall not hold.

    Returns:
        Lines of a shell script.

    Raises:
        MissingDependencyError: If lm-eval is not installed, which knows the names of its tasks.
        ConfigError: If there is no task, or one that lm-eval does not know, or one that is a JSONL file, which its
            command line does not take; or if a path has a comma, which it takes for the end of an argument.
        RepositoryError: If the repository cannot be read.
    """
    if not tasks:
        raise ConfigError("No task was given.", "Name one of lm-eval, such as 'commonsense_qa', or a YAML file.")
    local = [task for task in tasks if task.endswith(".jsonl")]
    if local:
        raise ConfigError(
            f"lm-eval's command line takes no JSONL file, as '{local[0]}'.",
            "Evaluate it without --backend vllm, or write a task YAML for it.",
        )
    check_names(tasks)
    common = ["--tasks", ",".join(tasks), "--include_path", str(tasks_dir())]
    common += ["--seed", f"0,{seed},{seed},{seed}", "--batch_size", "auto", "--log_samples"]
    common += ["--limit", str(limit)] if limit else []
    common += ["--apply_chat_template"] if chat_template else []
    common += ["--system_instruction", system_instruction] if system_instruction else []
    common += ["--gen_kwargs", f"max_gen_toks={max_gen_toks}"] if max_gen_toks else []
    access = hub.HubAccess(token=token)
    files = open_repository(repo, access, revision=revision)
    if files.kind is not PEFT:
        raise UnsupportedUpdateError(
            f"vLLM serves no {files.kind.noun} as an adapter.", "Evaluate it without --backend vllm."
        )
    files = files.with_weights(access)
    adapter = hub.read_json(files.folder / hub.ADAPTER_CONFIG)
    whole, own = not config_refusals("vllm", adapter), own_tokenizer(files.places)
    dtype = saved_dtype(hub.read_json(files.base.folder / hub.CONFIG))
    in_float32 = dtype == "float32" and choose_device() == "cpu"
    lines: list[str] = []
    names: list[str] = []
    for asked in map(parse_setting, modes):
        names.append(_file_name(asked.slug, names))
        setting = asked.resolved(files.config.setting)
        model = {"pretrained": files.base.name, "revision": files.base.revision}
        model |= {"tokenizer": str(own.folder)} if own else {}  # as every other way of evaluating takes it
        model |= {"dtype": "float32"} if in_float32 else {}  # vLLM would round it; its LoRAs on GPUs are of 16 bits
        if setting.label == "all" and whole:
            model |= _lora(files.folder, _rank(adapter))
        elif setting.label != "none":
            folder = f"./adapter-{names[-1]}"
            made = taia_command("export", repo, asked.value, folder, "--engine", "vllm", revision=files.revision)
            lines.append(made)
            model |= _lora(folder, _rank(adapter))
        words = ["--model", "vllm", "--model_args", _model_args(model), *common]
        for shots in num_fewshot:
            examples = ["--num_fewshot", str(shots)] if shots is not None else []
            results = f"results-{names[-1]}" + (f"-{shots}shot" if shots is not None else "")
            lines.append(shlex.join(["lm_eval", "run", *words, *examples, "--output_path", results]))
    return lines


def _file_name(slug: str, taken: Sequence[str]) -> str:
    """Makes a name of letters, digits, `-`, `_` and `.` of a setting, another one than those taken."""
    name = re.sub(r"[^A-Za-z0-9_.]+", "-", slug).strip("-.")[:80] or "mode"
    return name if name not in taken else f"{name}-{len(taken) + 1}"


def _rank(config: Mapping[str, Any]) -> int:
    """Returns the limit that takes a mode's LoRA: its rank is the largest of a LoRA's pairs, or found by the export."""
    rank = largest_rank(config)
    if config.get("peft_type") != "LORA" or config.get("use_dora") or rank is None:
        return VLLM_RANKS[-1]
    return vllm_rank(rank) or VLLM_RANKS[-1]


def _lora(folder: str | Path, rank: int) -> dict[str, str | None]:
    return {"lora_local_path": str(folder), "max_lora_rank": str(rank)}


def _model_args(values: Mapping[str, str | None]) -> str:
    for value in values.values():
        if value and "," in value:
            raise ConfigError(
                f"lm-eval's --model_args take no comma, as in '{value}'.", "Move or copy the folder to another path."
            )
    return ",".join(f"{name}={value}" for name, value in values.items() if value)
