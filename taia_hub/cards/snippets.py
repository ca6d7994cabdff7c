"""What it takes to run a model: facts for the code that a card shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from taia_hub.cards.data import CardData
from taia_hub.cards.escaping import python
from taia_hub.engines.facts import largest_rank
from taia_hub.engines.rules import config_refusals, vllm_rank
from taia_hub.hub.layout import PEFT
from taia_hub.switch.settings import parse_setting

_DEFAULTS = {"r": 8, "lora_alpha": 8, "target_modules": ["q_proj"]}
"""What stands in for what a card's configuration does not say: the rules shall judge what it says."""


@dataclass(frozen=True)
class Engines:
    """Which engines take the update as it lies in the repository, with every part of it acting.

    Attributes:
        vllm_rank: vLLM's `--max-lora-rank` for it, or None where vLLM refuses it.
        folder: Name of the folder that the download gets.
        path: Folder of the update in that repository, or "".
    """

    peft: bool
    vllm_rank: int | None
    llama_cpp: bool
    repo: str
    revision: str | None
    folder: str
    path: str


def engines(card: CardData) -> Engines:
    """Tells which engines serve the update: where the base model is a local folder, none.

    By the rules of `taia_hub.engines` for what the configuration says. Of embeddings and heads a card knows the number
    alone, and vLLM and llama.cpp take them for some architectures: they are not named for such an update.
    """
    config = {**_DEFAULTS, **card.adapter_config}
    repo = card.adapter_repo or card.repo_id
    other = card.parts.get("other")
    plain = bool(card.base_model) and "peft_type" in config and not (other and other.modules)
    takes = {engine: plain and not config_refusals(engine, config) for engine in ("vllm", "llama.cpp")}
    rank = largest_rank(card.adapter_config)
    return Engines(
        # PEFT alone takes another vocabulary only on a base that was resized before
        peft=bool(card.base_model) and card.update_kind == PEFT.name and not (other and other.resized),
        vllm_rank=vllm_rank(rank) if takes["vllm"] and rank is not None else None,
        llama_cpp=takes["llama.cpp"],
        repo=repo,
        revision=card.adapter_revision,
        folder=repo.rpartition("/")[2],
        path=card.adapter_path,
    )


def literal(setting: str | Mapping[str, Any]) -> str:
    """Writes a setting as Python that can be assigned to `inference_modules`.

    Example:
        >>> literal({"attention": 1.0, "*@0-7": [0.2, 1.0]})
        '{"attention": 1.0, "*@0-7": [0.2, 1.0]}'
    """
    if isinstance(setting, str):
        return python(setting)
    return "{" + ", ".join(f"{python(key)}: {weight!r}" for key, weight in parse_setting(setting).pairs) + "}"
