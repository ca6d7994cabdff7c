"""What it takes to run a model: facts for the code that a card shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from taia_hub.cards.data import CardData
from taia_hub.cards.escaping import python
from taia_hub.hub.layout import PEFT

_VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes for --max-lora-rank."""

_BEYOND_PLAIN_LORA = (
    "alora_invocation_tokens",
    "alpha_pattern",
    "layer_replication",
    "lora_bias",
    "modules_to_save",
    "rank_pattern",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_dora",
    "use_qalora",
)


@dataclass(frozen=True)
class Engines:
    """Which engines take the update as it lies in the repository, with every part of it acting.

    Attributes:
        peft: Whether plain PEFT loads it.
        vllm_rank: vLLM's `--max-lora-rank` for it, or None where vLLM refuses it.
        llama_cpp: Whether llama.cpp's converter reads it rightly.
        repo: Hub id of the repository that the update lies in.
        revision: Its commit, where it is fixed.
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
    """Tells which engines serve the update.

    vLLM and llama.cpp read one rank and one scale for all modules and nothing but LoRA's own two matrices, on the
    layers' linear modules; what is beyond that, such as embeddings and heads, they refuse, or treat wrongly without a
    word.

    Args:
        card: What the card says.

    Returns:
        The engines; none where the base model is a local folder.
    """
    config = card.adapter_config
    repo = card.adapter_repo or card.repo_id
    plain = bool(card.base_model) and str(config.get("peft_type")) == "LORA" and config.get("bias", "none") == "none"
    other = card.parts.get("other")
    simple = plain and not any(config.get(name) for name in _BEYOND_PLAIN_LORA) and not (other and other.modules)
    rank = config.get("r")
    fits = [limit for limit in _VLLM_RANKS if isinstance(rank, int) and rank <= limit]
    return Engines(
        peft=bool(card.base_model) and card.update_kind == PEFT.name,
        vllm_rank=fits[0] if simple and fits else None,
        llama_cpp=simple and not config.get("use_rslora"),
        repo=repo,
        revision=card.adapter_revision,
        folder=repo.rpartition("/")[2],
        path=card.adapter_path,
    )


def literal(setting: str | Mapping[str, float]) -> str:
    """Writes a setting as Python that can be assigned to `inference_modules`.

    Args:
        setting: A name, or a mapping of selectors to weights.

    Returns:
        The literal.

    Example:
        >>> literal({"attention": 1.0, "ffn@0-7": 0.5})
        '{"attention": 1.0, "ffn@0-7": 0.5}'
    """
    if isinstance(setting, str):
        return python(setting)
    return "{" + ", ".join(f"{python(key)}: {float(weight)!r}" for key, weight in setting.items()) + "}"
