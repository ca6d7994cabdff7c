"""Whether a server that has started answers for the base as the base, also beside a request with a LoRA.

vLLM 0.32 does not on CPUs where every slot is taken: a row without a LoRA gets that of the last slot.
"""

from __future__ import annotations

import json
import math
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from typing import Any

from taia_hub.errors import ConfigError

_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # the server is on this machine
_PROMPT = "The capital of France is"
_LENGTH = 4
_ROUNDING, _FAR = 0.01, 0.25
"""By how much log-probabilities of one model may differ from batch to batch: in float32, and in 16 bits."""


def check_base(
    url: str, none: str, lora: str, *, key: str | None = None, alive: Callable[[], bool] = lambda: True
) -> ConfigError | None:
    """Asks a server for the base alone, then beside a LoRA, as soon as it answers.

    Args:
        url: Where its API is, with `/v1`.
        none: Name of the base in requests.
        lora: Name of a mode with a LoRA.
        key: The server's API key.
        alive: Tells whether the server still runs; where it does not, nothing is checked.

    Returns:
        What is wrong with the answers; None where nothing is.

    Raises:
        OSError: If the server does not answer in the expected form, so that nothing is known.
    """
    try:
        if not _wait(url, key, alive):
            return None
        alone, other = _first(url, none, key), _first(url, lora, key)
        # a long answer of the LoRA goes on while the base answers
        with _post(url, lora, key, max_tokens=64, stream=True, ignore_eos=True) as running:
            running.readline()
            beside = _first(url, none, key)
    except (HTTPException, ValueError, LookupError, TypeError) as error:
        raise OSError(f"unexpected answer: {error!r}") from error
    apart = _distance(beside, alone)
    if apart > _FAR or (apart > _ROUNDING and apart > _distance(beside, other)):
        return ConfigError(
            f"'{none}' answers otherwise beside a request for '{lora}' than alone (its log-probabilities differ by "
            f"{apart:.2g}): the engine gives it the LoRA of another mode.",
            "The server was ended. Leave --max-loras out: it is set so that a slot stays free.",
        )
    return None


def _wait(url: str, key: str | None, alive: Callable[[], bool]) -> bool:
    while alive():
        try:
            with _OPENER.open(_request(f"{url}/models", key), timeout=10):
                return True
        except urllib.error.URLError as error:
            if not isinstance(error.reason, ConnectionRefusedError):
                raise
            time.sleep(1)  # it does not listen yet
    return False


def _first(url: str, model: str, key: str | None) -> list[tuple[str, float]]:
    """Returns the first tokens of an answer, each with its log-probability."""
    with _post(url, model, key, max_tokens=_LENGTH, logprobs=1) as answer:
        given = json.load(answer)["choices"][0]["logprobs"]
    found = list(zip(given["tokens"], map(float, given["token_logprobs"]), strict=True))
    if not found or not all(math.isfinite(likelihood) for _, likelihood in found):
        raise ValueError(f"no log-probabilities of '{model}'")
    return found


def _distance(one: list[tuple[str, float]], other: list[tuple[str, float]]) -> float:
    """Returns how far two answers are apart, up to where they part: another token there counts as its likelihood."""
    apart = 0.0
    for (token, likelihood), (other_token, other_likelihood) in zip(one, other, strict=False):
        apart = max(apart, abs(likelihood - other_likelihood))
        if token != other_token:
            break
    return apart


def _post(url: str, model: str, key: str | None, **values: Any) -> Any:
    asked = {"model": model, "prompt": _PROMPT, "temperature": 0, **values}
    return _OPENER.open(_request(f"{url}/completions", key, json.dumps(asked).encode()), timeout=60)


def _request(url: str, key: str | None, body: bytes | None = None) -> urllib.request.Request:
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    return urllib.request.Request(url, body, headers)
