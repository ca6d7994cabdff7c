"""Whether llama.cpp makes the tokens of transformers: `python -m taia_hub.engines.gguf_tokens FILE`.

It is asked in a process of its own: what it cannot load may end the process, and it says much.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from taia_hub.engines.gguf_lora import HOW_TO_GET_A_GGUF
from taia_hub.engines.gguf_vocabulary import Vocabulary, write_vocabulary_alone
from taia_hub.errors import UnsupportedUpdateError

logger = logging.getLogger(__name__)

SAMPLE = (
    "Hello, world! How are you?",
    "  two  spaces,   three\tand a tab\n\nnew lines\r\n  end  ",
    "1 12 123 1234 12345 3.14159 1,000,000 2024-01-31 ²³ ١٢٣",
    "I'm you're he'll she'd it's WE'VE don't 'quoted' \"double\"",
    "def f(x: int) -> str:\n    return f\"{x!r:>10}\"  # comment\n\tif x == 0 and y != [1, 2]:\n\t\tpass",
    "CamelCase snake_case kebab-case UPPER lower ÀÉÎõü Straße œuvre naïve",
    "Größe über Öl. Où est l'été ? ¿Qué tal? Dziękuję, příliš žluťoučký kůň.",
    "Привет, как дела? Γειά σου Κόσμε. שלום עולם. مرحبا بالعالم. नमस्ते दुनिया।",  # noqa: RUF001
    "你好，世界！今天天气很好。こんにちは世界、カタカナ。안녕하세요 세계. สวัสดีชาวโลก",  # noqa: RUF001
    "🙂 👩‍👩‍👧‍👦 🏳️‍🌈 ☃ ½ € ∑ → ∀x∈ℝ: x² ≥ 0 — “quotes” … ™",  # noqa: RUF001
    "https://example.org/a?b=c&d=%20#e user@example.org C:\\path\\file.txt",
    "{\"key\": [true, null, -1.5e-3], \"text\": \"a\\nb\"}\n<html><b>x</b></html>",
    "....,,,;;;!!!???---___***###$$$%%%^^^&&&((()))",
    "a", " ", "\n", " a", "",
)  # fmt: skip
"""Texts whose tokens are compared: languages, digits, code, white space and signs."""

_SECONDS = 300
_SPECIALS = 40
_CHAT = [{"role": "user", "content": "Hello! 1 + 1?"}]


def check_vocabulary(vocabulary: Vocabulary, name: str) -> None:
    """Compares the tokens of texts: of `SAMPLE`, with special tokens, and of a chat.

    Where xllamacpp is not installed that is not possible, and said.

    Raises:
        UnsupportedUpdateError: If one has other tokens in llama.cpp; the message calls the model `name`.
    """
    if importlib.util.find_spec("xllamacpp") is None:
        logger.warning("xllamacpp is not installed here: the tokens of '%s' as GGUF were not compared.", name)
        return
    tokenizer = vocabulary.tokenizer
    specials = [one.content for one in tokenizer.added_tokens_decoder.values()][:_SPECIALS]
    asked: list[tuple[str, bool]] = [(text, True) for text in SAMPLE]
    asked += [(f"Say {special} and{special}then {special}\n", True) for special in specials]
    if tokenizer.chat_template is not None:
        with contextlib.suppress(TemplateError):  # one that wants more than a question
            asked.append((tokenizer.apply_chat_template(_CHAT, tokenize=False, add_generation_prompt=True), False))
    ours = [tokenizer(text, add_special_tokens=around).input_ids for text, around in asked]
    for (text, _), one, other in zip(asked, ours, _llama_cpp(vocabulary, name, asked), strict=True):
        if one != other:
            place = next((at for at, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), None)
            place = min(len(one), len(other)) if place is None else place
            raise UnsupportedUpdateError(
                f"llama.cpp makes other tokens than the tokenizer of '{name}' of the text {text[:60]!r}: "
                f"{other[place : place + 5]} in place of {one[place : place + 5]}, after {place} that are the same.",
                f"Give --gguf FILE. {HOW_TO_GET_A_GGUF}",
            )


def _llama_cpp(vocabulary: Vocabulary, name: str, asked: list[tuple[str, bool]]) -> list[list[int]]:
    with tempfile.TemporaryDirectory(prefix="taia-gguf-") as folder:
        file = Path(folder) / "vocabulary.gguf"
        write_vocabulary_alone(vocabulary, file, name)
        command = [sys.executable, "-m", "taia_hub.engines.gguf_tokens", str(file)]
        try:
            made = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True, timeout=_SECONDS)
            said = (made.stderr.strip() or f"it ended with {made.returncode}").splitlines()[-1]
        except subprocess.TimeoutExpired:
            made, said = None, f"it did not answer in {_SECONDS} seconds"
    if made is None or made.returncode:
        raise UnsupportedUpdateError(
            f"llama.cpp cannot load the vocabulary of '{name}': {said}",
            f"Give --gguf FILE. {HOW_TO_GET_A_GGUF}",
        )
    tokens: list[list[int]] = json.loads(made.stdout.splitlines()[-1])
    return tokens


def main(file: str) -> None:
    """Reads pairs of a text and whether special tokens go around it, as JSON, and prints the tokens of each.

    Args:
        file: A GGUF file.
    """
    sys.stdout.write(f"\n{json.dumps(tokens_of(Path(file), json.load(sys.stdin)))}\n")


def tokens_of(file: Path, asked: list[tuple[str, bool]]) -> list[list[int]]:
    """Returns llama.cpp's tokens of each text, with special tokens around it where that is asked."""
    import xllamacpp

    params: Any = xllamacpp.CommonParams()
    params.model.path, params.hostnames, params.port = str(file), ["127.0.0.1"], 0
    params.n_ctx = params.n_batch = 64
    params.n_parallel, params.verbosity, params.warmup, params.fit_params = 1, 1, False, False
    server = xllamacpp.Server(params)
    tokens = []
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for text, around in asked:
        body = json.dumps({"content": text, "add_special": around, "parse_special": True}).encode()
        request = urllib.request.Request(
            f"{server.listening_address}/tokenize", body, {"Content-Type": "application/json"}
        )
        with opener.open(request, timeout=_SECONDS) as answer:
            tokens.append(json.load(answer)["tokens"])
    return tokens


if __name__ == "__main__":
    main(*sys.argv[1:])
