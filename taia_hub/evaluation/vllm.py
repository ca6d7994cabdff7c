"""The commands that evaluate a TAIA repository on vLLM, by lm-eval's own command line."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from typing import Any

from taia_hub import hub
from taia_hub.configuration_taia import TAIAConfig
from taia_hub.errors import ConfigError, UnsupportedUpdateError
from taia_hub.evaluation.catalogue import check_names
from taia_hub.evaluation.tasks import tasks_dir
from taia_hub.hub.layout import PEFT
from taia_hub.repository.reading import read_taia_config, update_folder
from taia_hub.switch.settings import parse_setting


def vllm_commands(
    repo: str,
    tasks: Sequence[str],
    modes: Sequence[Any],
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

    vLLM applies an adapter whole: `none` is the base model alone and `all` the adapter of the repository. Every other
    mode needs an adapter of its own, which holds only what acts; it is expected in the folder that the command names.

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
    source = hub.fetch(repo, [hub.CONFIG, f"{PEFT.folder}/*"], revision=revision, access=access, what="TAIA repository")
    config = read_taia_config(source.folder / hub.CONFIG, repo)
    if config.place.kind is not PEFT:
        raise UnsupportedUpdateError(
            f"vLLM serves no {config.place.kind.noun} as an adapter.", "Evaluate it without --backend vllm."
        )
    adapter_folder = update_folder(source, config, access)
    rank = hub.read_json(adapter_folder / hub.ADAPTER_CONFIG).get("r", 16)
    lines: list[str] = []
    names: list[str] = []
    for setting in map(parse_setting, modes):
        names.append(_file_name(setting.label, names))
        adapter: str | None = None
        if setting.label == "all":
            adapter = str(adapter_folder)
        elif setting.label != "none":
            adapter = f"./adapter-{names[-1]}"
            lines.append(f"# {adapter}: an adapter with only what acts in mode {setting.label}, in PEFT's format")
        model = ["--model", "vllm", "--model_args", _model_args(config, adapter, rank)]
        for shots in num_fewshot:
            words = ["--num_fewshot", str(shots)] if shots is not None else []
            results = f"results-{names[-1]}" + (f"-{shots}shot" if shots is not None else "")
            lines.append(shlex.join(["lm_eval", "run", *model, *common, *words, "--output_path", results]))
    return lines


def _file_name(label: str, taken: Sequence[str]) -> str:
    """Makes a name of letters, digits, `-`, `_` and `.` of a setting's label, another one than those taken."""
    name = re.sub(r"[^A-Za-z0-9_.]+", "-", label).strip("-.")[:80] or "mode"
    return name if name not in taken else f"{name}-{len(taken) + 1}"


def _model_args(config: TAIAConfig, adapter: str | None, rank: int) -> str:
    args = {"pretrained": config.base_model_name_or_path, "revision": config.base_model_revision}
    if adapter:
        args |= {"lora_local_path": adapter, "max_lora_rank": str(_served_rank(rank))}
    for value in args.values():
        if value and "," in value:
            raise ConfigError(
                f"lm-eval's --model_args take no comma, as in '{value}'.", "Move or copy the folder to another path."
            )
    return ",".join(f"{name}={value}" for name, value in args.items() if value)


def _served_rank(rank: int) -> int:
    """Rounds up to what vLLM's `max_lora_rank` takes."""
    return next((size for size in (8, 16, 32, 64, 128, 256, 320, 512) if size >= rank), rank)
