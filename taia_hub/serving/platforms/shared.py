"""What is handed over to a platform, and what the manifests of several have in common."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from taia_hub.common.resuming import digest
from taia_hub.engines import Order, ServedMode
from taia_hub.engines.order import colon_name, flag_of
from taia_hub.exporting.publishing import export_id
from taia_hub.serving.planning import ServingPlan
from taia_hub.switch.settings import Setting

FILES = "/taia"
"""Where servers see files that were copied into the cluster."""

_SET_ELSEWHERE = ("--lora-modules", "--served-model-name", "--host", "--port")


@dataclass(frozen=True)
class HandOver:
    """What is handed over: a plan for vLLM, the modes that were asked for, and how many copies of the server.

    `repo` and `revision` are the repository's Hub id, or its folder, and commit.
    """

    plan: ServingPlan
    repo: str
    revision: str | None
    settings: tuple[Setting, ...]
    copies: int

    @property
    def order(self) -> Order:
        """What is served."""
        return self.plan.order

    @property
    def name(self) -> str:
        """The name of the model as Kubernetes takes it."""
        return kubernetes_name(self.order.name)

    @property
    def flags(self) -> dict[str, tuple[str, ...]]:
        """The flags of `vllm serve`, but those that a platform sets itself, each with its values."""
        found: dict[str, tuple[str, ...]] = {}
        for first, *values in self.plan.commands[-1].lines[1:]:
            flag, equals, value = first.partition("=")
            found[flag_of(flag)] = (value,) if equals else tuple(values)
        for flag in ("--tokenizer", "--generation-config"):
            if self.order.tokenizer is not None and found.get(flag) == (str(self.order.tokenizer),):
                found[flag] = (f"{FILES}/tokenizer",)
        return {flag: values for flag, values in found.items() if flag not in _SET_ELSEWHERE}

    def words(self, *without: str) -> list[str]:
        """The flags as words of a command line, without some."""
        return [word for flag, values in self.flags.items() if flag not in without for word in (flag, *values)]

    def number(self, flag: str) -> int | None:
        """The number that a flag has; None where there is no such flag."""
        values = self.flags.get(flag)
        return int(values[0]) if values else None

    def served(self, mode: ServedMode) -> str:
        """The name of a mode in requests."""
        return colon_name(self.order.name, mode.label)

    def exported(self, mode: ServedMode) -> str:
        """Hub id of the repository that `push` publishes a mode's export to."""
        return export_id(self.repo, mode.label)

    @property
    def push(self) -> str:
        """The command that publishes the exports of the modes, a repository each."""
        values = [setting.value for setting in self.settings if setting.name != "none"]
        modes = [word for one in values for word in ("--mode", one if isinstance(one, str) else json.dumps(one))]
        to = self.repo if len(values) > 1 else self.exported(self.order.updates[0])
        at = ["--revision", self.revision] if self.revision else []
        return shlex.join(["taia", "export", self.repo, *modes, "--push", to, *at])


@dataclass(frozen=True)
class Platform:
    """A platform that takes modes.

    Attributes:
        name: What `--for` takes.
        title: Its name and the version whose sources the manifest was written for.
        docs: Where it is documented.
        run: What was run of the manifest when it was written.
        from_hub: Whether it fetches the exports from the Hub itself.
        base: How requests name the base model, of `name` and `base`.
        build: Makes the documents of the manifest.
        steps: Says what is to be done before, a line each.
    """

    name: str
    title: str
    docs: str
    run: str
    from_hub: bool
    base: str
    build: Callable[[HandOver], Sequence[Mapping[str, Any]]]
    steps: Callable[[HandOver], Sequence[str]]


def kubernetes_name(text: str) -> str:
    """Makes a name that Kubernetes takes for an object, a label and a service: lower case, digits and dashes.

    Where more was changed than a colon to a dash, a digest follows, so that two names never become one.

    Example:
        >>> kubernetes_name("model-taia:attention"), kubernetes_name("Llama_3.1:all")
        ('model-taia-attention', 'llama-3-1-all-cc2d78')
    """
    plain = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    plain = plain if plain[:1].isalpha() else f"m-{plain}"
    if plain == text.replace(":", "-") and len(plain) <= 63:
        return plain
    return f"{plain[:56].rstrip('-')}-{digest(text)[:6]}"


def variables(values: Mapping[str, str]) -> list[dict[str, Any]]:
    """Returns variables as a container takes them."""
    return [{"name": name, "value": value} for name, value in values.items()]


def token(secret: str) -> dict[str, Any]:
    """Returns the variable of the Hub's token, from a secret that need not be there."""
    return {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": secret, "key": "HF_TOKEN", "optional": True}}}


def gpus(over: HandOver) -> dict[str, Any]:
    """Returns the resources of a container: the GPUs of one server."""
    return {"limits": {"nvidia.com/gpu": str(over.order.tensor_parallel)}}


def mounted(over: HandOver, pod: dict[str, Any], *, always: bool = False) -> dict[str, Any]:
    """Gives the first container of a pod the files of the claim, where there are any that it needs."""
    if always or over.order.tokenizer is not None:
        pod["containers"][0]["volumeMounts"] = [{"name": "taia", "mountPath": FILES, "readOnly": True}]
        held = {"claimName": f"{over.name}-files", "readOnly": True}
        pod["volumes"] = [{"name": "taia", "persistentVolumeClaim": held}]
    return pod


def tokenizer_step(over: HandOver, where: str) -> list[str]:
    """Says where the tokenizer must be, where it is not the base model's."""
    if over.order.tokenizer is None:
        return []
    return [
        f"The model has a tokenizer of its own, or ends answers elsewhere than its base: {where} must hold, at "
        f"{FILES}/tokenizer, the files of {over.order.tokenizer}"
    ]


def claim(over: HandOver) -> str:
    """Says which volume holds the files."""
    return f"the PersistentVolumeClaim {over.name}-files"


def published(over: HandOver, behind: str) -> list[str]:
    """Says how the exports come to the Hub, and how they are fixed; `behind` is what a commit follows."""
    return [
        f"Before: {over.push}",
        f"Then put {behind}COMMIT, which that prints, behind each hf:// of a mode: a later export would change it. "
        "An address names a whole repository; a folder in one, such as a TAIA repository's adapter/, is not read.",
    ]


def kubernetes_object(version: str, kind: str, name: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    """Returns an object of Kubernetes."""
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name}, "spec": dict(spec)}
