"""Modes handed over to a platform that runs vLLM itself: the manifest that it takes, as YAML for its own client.

A repository and modes go in, text comes out; nothing is started. What vLLM is told (ranks, slots, the user's own flags)
is read from the command that `taia serve --engine vllm` prints, so that there is one answer.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import yaml

from taia_hub import hub
from taia_hub.common.shell import comment
from taia_hub.engines.order import extra_lines, flag_of
from taia_hub.errors import ConfigError
from taia_hub.exporting.publishing import export_id
from taia_hub.repository.update_files import Repository, open_repository
from taia_hub.serving.planning import modes_or_published, plan_serving
from taia_hub.serving.platforms import HandOver, Platform, find_platform
from taia_hub.switch.settings import InferenceModules

_SECRETS = ("--api-key", "--hf-token")


def hand_over(
    repo: str | os.PathLike[str],
    platform: str,
    modes: Sequence[InferenceModules] = (),
    *,
    data_parallel: int = 1,
    **values: Any,
) -> str:
    """Prepares the exports of modes and writes the manifest with which a platform serves them.

    Args:
        repo: Hub id of a TAIA repository, or of a PEFT adapter; a folder where the platform reads the exports from
            files.
        platform: `"kserve"`, `"ray-serve"`, `"llm-d"` or `"dynamo"`.
        modes: As of `plan_serving`.
        data_parallel: Copies of the server, which become the platform's replicas.
        values: Further keywords of `plan_serving`.

    Returns:
        YAML with comments that say what it is, what was run of it and what to do before.

    Raises:
        ConfigError: If the platform is not known, or cannot reach the repository or its base model.
        TAIAError: As of `plan_serving`.

    Example:
        ```python
        text = hand_over("org/model-taia", "kserve", ["attention", "all"])
        ```
    """
    found = find_platform(platform)
    _check_flags(found, values.get("extra", ()))
    access, revision = hub.HubAccess(token=values.get("token")), values.get("revision")
    files = open_repository(repo, access, revision=revision)
    _check_reach(found, files)
    asked = modes_or_published(modes, files.config.setting)
    if all(setting.resolved(files.config.setting).name == "none" for setting in asked):
        raise ConfigError("Only the base model is left: there is no mode to hand over.", "Add --mode attention.")
    for setting in asked if found.from_hub else ():
        hub.check_repo_id(export_id(files.name, setting.slug))  # the Hub's own limit of a name
    plan = plan_serving(files, "vllm", modes, **values)
    return manifest(found, HandOver(plan, files.name, files.revision, asked, data_parallel))


def manifest(platform: Platform, over: HandOver) -> str:
    """Writes what a platform takes, behind comments that say what it is, what was run of it and what to do before."""
    order = over.order
    base = platform.base.format(name=order.name, base=order.base)
    head = [
        f"{platform.title}: {platform.run} {platform.docs}",
        f"Models: {', '.join(map(over.served, order.updates))}, and the base as {base}",
        *over.plan.notes,
        *platform.steps(over),
    ]
    documents = (yaml.safe_dump(one, sort_keys=False, width=120, allow_unicode=True) for one in platform.build(over))
    return "\n".join(map(comment, head)) + "\n" + "---\n".join(documents)


def _check_flags(platform: Platform, extra: Sequence[str]) -> None:
    """Refuses flags whose values a manifest would show to all, or that are files of this machine."""
    for line in extra_lines(extra):
        flag, equals, value = line[0].partition("=")
        if flag_of(flag) in _SECRETS:
            raise ConfigError(
                f"The secret of {flag} would stand in the manifest.",
                f"Leave it out, and give it to {platform.title.split(',')[0]} as a secret of the cluster.",
            )
        for word in (value,) if equals else line[1:]:
            if os.path.isfile(word):
                raise ConfigError(
                    f"'{word}', the value of {flag}, is a file of this machine, which no server of a cluster sees.",
                    "Put it where the servers see it, and give that path.",
                )


def _check_reach(platform: Platform, files: Repository) -> None:
    """Refuses what the servers of a cluster cannot fetch."""
    if files.base.revision is None:
        raise ConfigError(
            f"The base model is the folder '{files.base.name}' of this machine, which no server of a cluster sees.",
            "Publish it, and make the repository on it again: `taia create --base org/base …`.",
        )
    if not platform.from_hub:
        return
    if files.revision is None:
        raise ConfigError(
            f"{platform.title} fetches exports from the Hub, and '{files.name}' is a folder.",
            "Publish it with `taia push`, and name that repository.",
        )
    for name in (files.name, files.base.name):
        if "/" not in name:
            raise ConfigError(
                f"{platform.title} reads hf://owner/name, and '{name}' names no owner.",
                "Name it with its owner, as in openai-community/gpt2.",
            )
