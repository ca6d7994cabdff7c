"""Whether a GGUF file is of a base model: by its shapes, and by rows of the embedding and of the last layer."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from taia_hub import hub
from taia_hub.engines.gguf_base import LAYOUTS
from taia_hub.engines.gguf_files import gguf_package
from taia_hub.engines.gguf_lora import Base, open_base
from taia_hub.errors import RepositoryError, UpdateMismatchError

if TYPE_CHECKING:
    from taia_hub.weights.checkpoint import StoredTensor

logger = logging.getLogger(__name__)

_PLACES, _ROWS = 4, 16  # so many pieces of so many rows, over the whole matrix
_HINT = "Give the GGUF of the base model that the update is for, or leave --gguf out, and it is written."


def check_gguf_base(path: Path, base: hub.Source, access: hub.HubAccess | None = None) -> Base:
    """Refuses a GGUF file of another model than a base; of one on the Hub only the rows that are compared are fetched.

    Numbers of 16 or 32 bits must be the base's own, rounded. Where a number has b bits, rounding in blocks takes two to
    three times 2^-b of the numbers' size (measured on SmolLM2, Q4_0 to Q8_0), and twice that is allowed: a fine-tune
    that moved its weights by less is not told from the base. A base without safetensors, or out of reach, is not
    compared, and that is said.

    Args:
        path: The GGUF file.
        base: The base model; its configuration must be on this disk.
        access: How the Hub is reached.

    Returns:
        The file's header.

    Raises:
        UpdateMismatchError: If it is of another model.
        UnsupportedUpdateError: If how its architecture lies in a GGUF file is not known here.
        RepositoryError: If it is no GGUF file, truncated, or one part of several.
    """
    from taia_hub.weights.base_weights import headers_of

    file, reader = open_base(path)
    values = hub.read_json(base.folder / hub.CONFIG)
    layout = LAYOUTS.get(str(values.get("model_type")))
    heads = values.get("num_attention_heads")
    for what, there, own in (
        ("architecture", file.architecture, layout and layout.name),
        ("number of layers", file.blocks, values.get("num_hidden_layers")),
        ("number of heads", file.heads, heads),
        ("number of key heads", file.key_heads, values.get("num_key_value_heads") or heads),
        ("width", file.shapes.get("token_embd.weight", (0,))[-1], values.get("hidden_size")),
    ):
        if own is not None and there != own:
            raise UpdateMismatchError(
                f"'{path.name}' is not the base model '{base.name}': its {what} is {there}, and the base's {own}.",
                _HINT,
            )
    try:
        stored = headers_of(base, access or hub.HubAccess())
        tensors = {tensor.name: tensor for tensor in reader.tensors}
        for end, name in (
            ("embed_tokens.weight", "token_embd.weight"),
            (f".{file.blocks - 1}.mlp.down_proj.weight", f"blk.{file.blocks - 1}.ffn_down.weight"),
        ):
            own = next((one for key, one in stored.items() if key.endswith(end)), None)
            if own is not None and own.kind in ("F32", "F16", "BF16") and name in tensors:
                _compare(path, tensors[name], own, base)
    except (RepositoryError, NotImplementedError) as error:  # the latter of a kind of numbers that gguf cannot read
        why = getattr(error, "message", error)
        logger.warning("'%s' was not compared with the base model '%s': %s", path.name, base.name, why)
    return file


def _compare(path: Path, tensor: Any, own: StoredTensor, base: hub.Source) -> None:
    gguf = gguf_package()
    name = tensor.name
    rows, columns = (int(size) for size in reversed(tensor.shape))
    if columns != own.shape[1] or rows > own.shape[0]:
        raise UpdateMismatchError(
            f"'{path.name}' is not the base model '{base.name}': '{name}' has shape {(rows, columns)}, and the base's "
            f"{own.shape}.",
            _HINT,
        )
    kind, count = tensor.tensor_type, min(_ROWS, rows)
    starts = sorted({int(start) for start in np.linspace(0, rows - count, _PLACES)})
    there = np.concatenate([gguf.quants.dequantize(tensor.data[start : start + count], kind) for start in starts])
    here = np.concatenate([own.read_rows(start, count).float().numpy() for start in starts])
    here = _rounded(here, kind)
    block, size = gguf.GGML_QUANT_SIZES[kind]
    bits = 8 * size / block
    allowed = min(6 / 2**bits, 1.0) if bits < 16 else 0.0
    off = float(np.linalg.norm(there - here) / (np.linalg.norm(here) or 1.0))
    if not off <= allowed:
        raise UpdateMismatchError(
            f"'{path.name}' is not the base model '{base.name}': the numbers of its '{name}' ({kind.name}) are off by "
            f"{off:.2%} of their size, and {allowed:.2%} is what rounding may do.",
            _HINT,
        )


def _rounded(values: np.ndarray, kind: Any) -> np.ndarray:
    """Rounds numbers to a type of 16 or 32 bits; any other type leaves them as they are."""
    gguf = gguf_package()
    if kind.name not in ("F16", "BF16"):
        return values
    made: np.ndarray = gguf.quants.dequantize(gguf.quants.quantize(values, kind), kind)
    return made
