"""A tokenizer of transformers as the vocabulary of a GGUF file.

llama.cpp splits text by rules of its own, which a file chooses by a name. Known here are those of `SPLITS`, and
SentencePiece's as Llama 2 and Gemma have it. Whether the tokens are the same is not believed but tried:
`gguf_tokens` tokenizes a sample both ways.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from taia_hub.engines.gguf_files import gguf_package, new_gguf
from taia_hub.engines.gguf_lora import HOW_TO_GET_A_GGUF
from taia_hub.errors import UnsupportedUpdateError

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_DIGIT = r"\p{N}"
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}{_REST}"
_QWEN2 = rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{_REST}"

SPLITS: Mapping[tuple[tuple[str, ...], bool], str] = {
    ((_GPT2,), False): "gpt-2",
    ((_DIGIT, _GPT2), False): "smollm",
    ((_LLAMA3,), True): "llama-bpe",
    ((_LLAMA3,), False): "dbrx",
    ((_QWEN2,), False): "qwen2",
}
"""The expressions that text is split by one after another, and whether whole words pass over the merges, to the name
of that in llama.cpp (its src/llama-vocab.cpp)."""

Value = str | int | float | bool | list[str] | list[int] | list[float]


@dataclass(frozen=True)
class Vocabulary:
    """The fields of a GGUF file that hold a tokenizer, without the first part of their names, and its tokenizer.

    `fields` has all but what llama.cpp would guess; `tokenizer` is the one of transformers that it was made of.
    """

    fields: Mapping[str, Value]
    tokenizer: Any

    def write(self, writer: Any) -> None:
        """Puts the fields into a file that is being written."""
        for name, value in self.fields.items():
            add_field(writer, f"tokenizer.{name}", value)


def add_field(writer: Any, name: str, value: Value) -> None:
    """Puts one field into a file that is being written, of the type that llama.cpp expects."""
    if isinstance(value, list):
        writer.add_array(name, value)
    elif isinstance(value, bool):
        writer.add_bool(name, value)
    elif isinstance(value, int):
        writer.add_uint32(name, value)
    elif isinstance(value, float):
        writer.add_float32(name, value)
    else:
        writer.add_string(name, value)


def read_vocabulary(tokenizer: Any, size: int, ends: list[int], what: str) -> Vocabulary:
    """Makes the vocabulary of a tokenizer of transformers.

    Args:
        tokenizer: The tokenizer.
        size: Rows of the model's embedding.
        ends: Tokens that answers end at.
        what: What messages call the model.

    Raises:
        UnsupportedUpdateError: If how it splits text is not known here.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    described = json.loads(backend.to_str()) if backend is not None else {}
    model = described.get("model") or {}
    if model.get("type") != "BPE" or model.get("dropout") or not model.get("merges"):
        raise _unknown(what, f"it is of the kind {model.get('type') or type(tokenizer).__name__}")
    if len(tokenizer) > size:
        raise _unknown(what, f"it has {len(tokenizer)} tokens, and the model {size}")
    kind = _sentencepiece(described, size) if model.get("byte_fallback") else _byte_level(described, what)
    tokens, types = _tokens(described, size, spaces=bool(model.get("byte_fallback")))
    fields: dict[str, Value] = {**kind, "ggml.tokens": tokens, "ggml.token_type": types, **_specials(tokenizer, ends)}
    if (template := tokenizer.chat_template) is not None:
        fields["chat_template"] = template["default"] if isinstance(template, Mapping) else template
    return Vocabulary(fields, tokenizer)


def _byte_level(described: Mapping[str, Any], what: str) -> dict[str, Value]:
    splits, model = tuple(_splits(described.get("pre_tokenizer"))), described["model"]
    normalizer = (described.get("normalizer") or {}).get("type")
    name = SPLITS.get((splits, bool(model.get("ignore_merges"))))
    if name is None or normalizer not in (None, "NFC") or (described.get("decoder") or {}).get("type") != "ByteLevel":
        raise _unknown(what, "how it splits text is none of the ways that are known here")
    merges = [one if isinstance(one, str) else " ".join(one) for one in model["merges"]]
    return {"ggml.model": "gpt2", "ggml.pre": name, "ggml.merges": merges}


def _splits(step: Any) -> Iterator[str]:
    """Lists the expressions that text is split by; what is no such step gives one that nobody knows."""
    kind = (step or {}).get("type")
    if kind == "Sequence":
        for one in step["pretokenizers"]:
            yield from _splits(one)
    elif kind == "Split" and "Regex" in step["pattern"] and step["behavior"] == "Isolated" and not step["invert"]:
        yield step["pattern"]["Regex"]
    elif kind == "Digits" and step["individual_digits"]:
        yield _DIGIT
    elif kind == "ByteLevel" and not step["add_prefix_space"]:
        if step["use_regex"]:
            yield _GPT2
    else:
        yield f"<{kind}>"


def _sentencepiece(described: Mapping[str, Any], size: int) -> dict[str, Value]:
    """Makes scores of merges: SentencePiece joins the pair whose whole has the highest one."""
    model, scores = described["model"], [-1e6] * size
    for rank, pair in reversed(list(enumerate(model["merges"]))):
        whole = pair.replace(" ", "", 1) if isinstance(pair, str) else "".join(pair)
        if (token := model["vocab"].get(whole)) is not None:
            scores[token] = -float(rank)
    text = json.dumps([described.get("normalizer"), described.get("pre_tokenizer")])
    prefix = '"Prepend"' in text or '"prepend_scheme": "first"' in text or '"prepend_scheme": "always"' in text
    return {"ggml.model": "llama", "ggml.pre": "default", "ggml.scores": scores, "ggml.add_space_prefix": prefix}


def _tokens(described: Mapping[str, Any], size: int, *, spaces: bool) -> tuple[list[str], list[int]]:
    """Lists all tokens by their ids, with llama.cpp's type of each; `spaces`: whether vocabularies write them as ▁."""
    kinds = gguf_package().TokenType
    tokens, types = [f"[PAD{token}]" for token in range(size)], [int(kinds.UNUSED)] * size
    for text, token in described["model"]["vocab"].items():
        is_byte = spaces and len(text) == 6 and text.startswith("<0x")
        tokens[token], types[token] = text, int(kinds.BYTE if is_byte else kinds.NORMAL)
    if spaces and (unknown := described["model"].get("unk_token")) is not None:
        types[described["model"]["vocab"][unknown]] = int(kinds.UNKNOWN)
    for one in described.get("added_tokens") or ():
        token, text = one["id"], one["content"]
        if types[token] == kinds.UNKNOWN:
            continue
        tokens[token] = text if one["special"] or not spaces else text.replace("▁", " ")
        types[token] = int(kinds.CONTROL if one["special"] else kinds.USER_DEFINED)
    return tokens, types


def _specials(tokenizer: Any, ends: list[int]) -> dict[str, Value]:
    """Says which tokens are special, and which are put around a text."""
    fields: dict[str, Value] = {}
    known = {"bos": tokenizer.bos_token_id, "unknown": tokenizer.unk_token_id, "padding": tokenizer.pad_token_id}
    eos = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else next(iter(ends), None)
    known["eos"] = eos
    others = [one for one in ends if one != eos]
    known |= dict(zip(("eot", "eom"), others, strict=False))  # llama.cpp has three; further ones it knows by their text
    fields |= {f"ggml.{name}_token_id": token for name, token in known.items() if token is not None}
    around = tokenizer("a").input_ids
    fields["ggml.add_bos_token"] = len(around) > 1 and around[0] == tokenizer.bos_token_id
    fields["ggml.add_eos_token"] = len(around) > 1 and around[-1] == tokenizer.eos_token_id
    return fields


def write_vocabulary_alone(vocabulary: Vocabulary, out: Path, name: str) -> None:
    """Writes a GGUF file of a model of zeros with the vocabulary, which llama.cpp loads in half a second."""
    size, width = len(vocabulary.fields["ggml.tokens"]), 32  # type: ignore[arg-type]
    with new_gguf(out, "llama") as writer:
        writer.add_name(name)
        numbers = {"vocab_size": size, "context_length": 64, "block_count": 1, "attention.head_count": 1}
        numbers |= dict.fromkeys(("embedding_length", "feed_forward_length", "rope.dimension_count"), width)
        for key, number in numbers.items():
            add_field(writer, f"llama.{key}", number)
        add_field(writer, "llama.attention.layer_norm_rms_epsilon", 1e-5)
        vocabulary.write(writer)
        writer.add_tensor("token_embd.weight", np.zeros((size, width), np.float16))
        for one in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
            writer.add_tensor(f"{one}.weight", np.zeros(width, np.float32))
        for one in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
            writer.add_tensor(f"blk.0.{one}.weight", np.zeros((width, width), np.float16))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()


def _unknown(what: str, why: str) -> UnsupportedUpdateError:
    return UnsupportedUpdateError(
        f"The tokenizer of the {what} cannot be written as GGUF here: {why}.",
        f"Give --gguf FILE. {HOW_TO_GET_A_GGUF}",
    )
