"""The commands that evaluate a TAIA repository on vLLM, by lm-eval's own command line."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from taia_hub import hub
from taia_hub.configuration_taia import TAIAConfig
from taia_hub.errors import ConfigError
from taia_hub.evaluation.tasks import tasks_dir
from taia_hub.loading import read_taia_config, update_folder
from taia_hub.policy import parse_setting


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
) -> list[str]:
    """Writes the shell commands that evaluate a repository on vLLM, a mode at a time.

    vLLM applies an adapter whole: `none` is the base model alone and `all` the adapter of the repository. Every other
    mode needs an adapter of its own, which holds only what acts; it is expected in the folder that the command names.

    Args:
        repo: Hub id or folder of a TAIA repository.
        tasks: Names of lm-eval's tasks or of this package's.
        modes: Settings.
        revision: Revision of the repository.
        token: Access token.
        limit: Most items a task.
        num_fewshot: Numbers of examples; None for each task's own.
        seed: Seed of the examples.
        chat_template: Whether prompts go through the chat template.

    Returns:
        Lines of a shell script.

    Raises:
        ConfigError: If a task is a JSONL file, which lm-eval's command line does not take.
        RepositoryError: If the repository cannot be read.
    """
    local = [task for task in tasks if task.endswith(".jsonl")]
    if local:
        raise ConfigError(
            f"lm-eval's command line takes no JSONL file, as '{local[0]}'.",
            "Evaluate it without --backend vllm, or write a task YAML for it.",
        )
    access = hub.HubAccess(token=token)
    source = hub.fetch(repo, [hub.CONFIG, "adapter/*"], revision=revision, access=access, what="TAIA repository")
    config = read_taia_config(source.folder / hub.CONFIG, repo)
    lines = []
    for setting in map(parse_setting, modes):
        adapter: str | None = None
        if setting.label == "all":
            adapter = str(update_folder(source, config, access))
        elif setting.label != "none":
            adapter = f"./adapter-{setting.label}"
            lines.append(f"# {adapter}: an adapter with only what acts in mode {setting.label}, in PEFT's format")
        rank = hub.read_json(update_folder(source, config, access) / hub.ADAPTER_CONFIG).get("r", 16)
        for shots in num_fewshot:
            lines.append(
                shlex.join(_words(config, adapter, rank, tasks, shots, limit, seed, chat_template, setting.label))
            )
    return lines


def _words(
    config: TAIAConfig,
    adapter: str | None,
    rank: int,
    tasks: Sequence[str],
    shots: int | None,
    limit: int | None,
    seed: int,
    chat_template: bool,
    label: str,
) -> list[str]:
    model = f"pretrained={config.base_model_name_or_path}"
    if config.base_model_revision:
        model += f",revision={config.base_model_revision}"
    if adapter:
        model += f",lora_local_path={adapter},max_lora_rank={_served_rank(rank)}"
    words = ["lm_eval", "run", "--model", "vllm", "--model_args", model, "--tasks", ",".join(tasks)]
    words += ["--include_path", str(tasks_dir()), "--seed", f"0,{seed},{seed},{seed}", "--batch_size", "auto"]
    words += ["--log_samples", "--output_path", f"results-{label}" + (f"-{shots}shot" if shots is not None else "")]
    words += ["--num_fewshot", str(shots)] if shots is not None else []
    words += ["--limit", str(limit)] if limit else []
    return [*words, "--apply_chat_template"] if chat_template else words


def _served_rank(rank: int) -> int:
    """Rounds up to what vLLM's `max_lora_rank` takes."""
    return next((size for size in (8, 16, 32, 64, 128, 256, 320, 512) if size >= rank), rank)
