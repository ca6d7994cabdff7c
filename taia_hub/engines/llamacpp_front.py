"""llama.cpp's own server, which takes a setting with each request: `python -m taia_hub.engines.llamacpp_front FILE`.

The server, as xllamacpp carries it, holds one base and a LoRA a part of the update, and takes the LoRAs' scales with
each request. This front finds the setting that a request asks for, by the name of its model or the field
`inference_modules`, puts the scale of every LoRA in its place, and passes on what comes and goes. Where llama.cpp would
take another setting in silence, there is no passing: what generates without reading scales, and what keeps keys and
values of a prompt without asking which LoRA made them, is left out.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any
from urllib.parse import quote

from taia_hub.common.imports import import_or_raise
from taia_hub.common.parsing import parse_json
from taia_hub.engines.parts import Served
from taia_hub.errors import ConfigError, SettingError, TAIAError, closest, short
from taia_hub.switch.settings import parse_setting

_GENERATE = ("chat/completions", "completions", "responses")
GENERATING = (*(f"/v1/{name}" for name in _GENERATE), *(f"/{name}" for name in _GENERATE), "/completion", "/infill")
"""What reads the scales of a request. `/v1/messages` loses them, embeddings and reranking never look."""
MODELESS = ("/tokenize", "/detokenize", "/apply-template", "/v1/messages/count_tokens")
"""What else may be posted: no setting answers it differently."""
FIELD = "inference_modules"
"""The field of a request that says its setting."""
_FIXED = {
    # Prompts of one mode would be taken for another's: entries are found by their tokens alone.
    "cache_ram_mib": 0,
    "port": 0,  # any that is free
    "hostnames": ["127.0.0.1"],
}
_DEFAULTS = {"n_parallel": 4, "kv_unified": True, "verbosity": 1}  # as llama-server takes them; errors alone


def make_params(settings: Mapping[str, str]) -> Any:
    """Makes llama.cpp's parameters from names and texts, such as `{"n_ctx": "4096", "cpuparams.n_threads": "2"}`.

    Raises:
        ConfigError: If a name is none of `xllamacpp.CommonParams`, or a text is no value of it.
        MissingDependencyError: If xllamacpp is not installed.
    """
    params = import_or_raise("xllamacpp", extra="serve", feature="llama.cpp").CommonParams()
    for one, default in _DEFAULTS.items():
        setattr(params, one, default)
    known = _names(params)
    for name, text in settings.items():
        if name not in known:
            inner = next((full for full in known if full.endswith(f".{name}")), None)
            raise ConfigError(
                f"llama.cpp has no parameter '{name}'.{closest(inner or name, known)}",
                "Flags are the names of xllamacpp.CommonParams, as in -- --n-ctx 4096 --cpuparams.n-threads 2.",
            )
        group, _, last = name.rpartition(".")
        place = getattr(params, group) if group else params
        try:
            setattr(place, last, _value(text, getattr(place, last)))
        except (TypeError, ValueError, OverflowError, AssertionError) as error:
            kind = type(getattr(place, last))
            said = f"one of {', '.join(kind.__members__)}" if issubclass(kind, Enum) else f"of type {kind.__name__}"
            raise ConfigError(f"'{text}' is no value of llama.cpp's parameter '{name}'.", f"It is {said}.") from error
    for one, fixed in _FIXED.items():
        setattr(params, one, fixed)
    return params


def _names(params: Any) -> list[str]:
    """Lists what can be set, that of groups as `group.name`."""
    names = []
    for name in (one for one in dir(params) if not one.startswith("_")):
        value = getattr(params, name)
        inner = type(value).__module__ == type(params).__module__ and not isinstance(value, Enum)
        names += [f"{name}.{one}" for one in dir(value) if not one.startswith("_")] if inner else [name]
    return names


def _value(text: str, present: Any) -> Any:
    """Reads a text as a value of the type of the present one; that of an enumeration by the end of its name."""
    if isinstance(present, str):
        return text  # a key of digits stays one
    if isinstance(present, Enum):
        end = f"_{text.lower().replace('-', '_')}"
        ends = (one for name, one in type(present).__members__.items() if name.lower().endswith(end))
        return type(present)(int(text)) if text.lstrip("-").isdecimal() else next(ends, text)
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    if isinstance(present, list):  # some have a length, as that of a number a device
        value = value if isinstance(value, list) else [text]
        value += present[len(value) :]
    return value


class Refusal(Exception):
    """A request that is refused, and the OpenAI error that says why."""

    def __init__(self, status: int, message: str, code: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.error = {"message": message, "type": "invalid_request_error", "param": param, "code": code}


def translate(asked: Any, served: Served) -> tuple[str, dict[str, Any]]:
    """Makes llama.cpp's request of one that names a setting.

    The field `inference_modules` says the setting, else the name of the model; where both say one, they must agree.

    Args:
        asked: The body of the request.
        served: The models and the LoRAs; those with a file are numbered in their order.

    Returns:
        The name that the answer shall carry, and the body with the scale of every LoRA.

    Raises:
        Refusal: If the request is no object, or asks for what is not served.

    Example:
        ```python
        translate({"model": "m:attention", "prompt": "Hi"}, served)[1]["lora"]  # [{"id": 0, "scale": 1.0}, …]
        ```
    """
    if not isinstance(asked, dict):
        raise Refusal(400, "The body of a request is a JSON object.", "invalid_json")
    if asked.get("lora") is not None:
        raise Refusal(400, f"Scales of LoRAs are set here. Write a setting into '{FIELD}' instead.", "lora", "lora")
    body = {key: value for key, value in asked.items() if key != FIELD}
    model, given = asked.get("model"), asked.get(FIELD)
    with _refused("model", 404, "model_not_found"):
        named = served.setting(model)
    if given is None:
        with _refused("model"):
            weights = served.weights(named)
    else:
        with _refused(FIELD):
            weights = served.weights(served.known(parse_setting(given)))
            if model and model != served.name and weights != served.weights(named):
                raise SettingError(
                    f"The model '{model}' came with another setting in '{FIELD}': {short(given)}.",
                    f"Ask for the model '{served.name}', or leave '{FIELD}' out.",
                )
    files = [weight for part, weight in zip(served.parts, weights, strict=True) if part.path]
    name = model or next(iter(served.models)) if given is None else model or served.name
    return name, {**body, "lora": [{"id": place, "scale": scale} for place, scale in enumerate(files)]}


@contextlib.contextmanager
def _refused(param: str, status: int = 400, code: str = "invalid_inference_modules") -> Iterator[None]:
    try:
        yield
    except (SettingError, ConfigError) as error:
        raise Refusal(status, " ".join(filter(None, [error.message, error.hint])), code, param) from error


def make_app(address: str, served: Served, alias: str) -> Any:
    """Makes the front of a server.

    Args:
        address: Where the server is, such as `"http://127.0.0.1:41234"`.
        served: Names of models, settings and LoRAs.
        alias: What the server calls its model, in place of which an answer carries the name that was asked for.

    Returns:
        The Starlette application.
    """
    import httpx
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response, StreamingResponse
    from starlette.routing import Route

    # else httpx would ask for compression itself, and names in what is compressed cannot be replaced
    plain = {"accept-encoding": "identity"}
    unlimited = httpx.Limits(max_connections=None)  # llama.cpp holds the queue
    client = httpx.AsyncClient(headers=plain, timeout=None, limits=unlimited, trust_env=False)

    def asking(
        request: Request, method: str, path: str, left_out: tuple[str, ...], body: bytes | None = None
    ) -> httpx.Request:
        headers = httpx.Headers(_without(request.headers.raw, "host", *_HOP, *left_out), encoding="latin-1")
        query = request.scope["query_string"] or None
        try:
            url = httpx.URL(address).copy_with(path=quote(path), query=query)
        except httpx.InvalidURL as error:
            raise Refusal(414, f"The path of a request cannot be passed on: {error}.", "invalid_path") from error
        return client.build_request(method, url, headers=headers, content=body)

    async def refuse(request: Request, refusal: Any) -> Response:
        origin = request.headers.get("origin")  # llama.cpp lets pages of every origin read its answers
        headers = {"access-control-allow-origin": origin} if origin else None
        return JSONResponse({"error": refusal.error}, refusal.status, headers)

    async def sent(asked: httpx.Request) -> httpx.Response:
        try:
            return await client.send(asked, stream=True)
        except httpx.TransportError as error:
            raise Refusal(502, f"llama.cpp does not answer: {error}.", "no_answer") from error

    async def sent_while_awaited(request: Request, asked: httpx.Request) -> httpx.Response:
        answer, leaving = asyncio.ensure_future(sent(asked)), asyncio.ensure_future(request.receive())
        try:
            await asyncio.wait((answer, leaving), return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return answer.result()
            raise Refusal(499, "The client left before there was an answer.", "client_left")
        finally:  # llama.cpp ends what nobody waits for, and its slot is free
            answer.cancel()
            leaving.cancel()

    async def listed(request: Request) -> Response:
        answer = await sent(asking(request, "GET", "/v1/models", ("accept-encoding",)))
        await answer.aread()
        headers = _without(answer.headers.raw, *_HOP, "content-encoding")
        if not answer.is_success:
            return Response(answer.content, answer.status_code, headers)
        body = answer.json()
        for key in ("data", "models"):
            own = json.dumps(body[key][0])
            body[key] = [json.loads(own.replace(json.dumps(alias), json.dumps(name))) for name in served.models]
        return JSONResponse(body, headers=headers)

    async def passed_on(request: Request) -> Response:
        path, body, name = f"/{request.path_params['path']}", await request.body(), alias  # without a root path
        left_out: tuple[str, ...] = ()
        if request.method == "POST" and path in GENERATING:
            try:
                asked = parse_json(body.decode(), unique=True)
            except ValueError as error:
                raise Refusal(400, f"The body of a request is a JSON object: {error}.", "invalid_json") from error
            name, translated = translate(asked, served)
            body = json.dumps(translated).encode()
            left_out = ("accept-encoding",)
        elif request.method not in ("GET", "HEAD", "OPTIONS") and path not in MODELESS:
            there = ", ".join((*GENERATING[: len(_GENERATE)], *MODELESS))
            raise Refusal(404, f"{path} knows no settings, and is not served. Post to one of {there}.", "not_served")
        answer = await sent_while_awaited(request, asking(request, request.method, path, left_out, body))
        return StreamingResponse(
            _renamed(answer, _field(alias), _field(name)), answer.status_code, _without(answer.headers.raw, *_HOP)
        )

    methods = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
    models_routes = [Route(path, listed) for path in ("/v1/models", "/models")]
    routes = [*models_routes, Route("/{path:path}", passed_on, methods=methods)]
    return Starlette(routes=routes, exception_handlers={Refusal: refuse})


_HOP = (
    *("content-length", "transfer-encoding", "te", "trailer", "expect", "upgrade"),
    *("connection", "keep-alive", "proxy-connection"),
)
"""Headers of a connection, not of what it carries."""


def _without(headers: Iterable[tuple[bytes, bytes]], *names: str) -> dict[str, str]:
    texts = ((name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in headers)
    return {name: value for name, value in texts if name not in names}


def _field(name: str) -> bytes:
    return f'"model":{json.dumps(name)}'.encode()


async def _renamed(answer: Any, own: bytes, asked: bytes) -> AsyncIterator[bytes]:
    """Streams an answer line by line, with the model's name; within a text of JSON its quotes would be escaped."""
    rest = b""
    try:
        async for chunk in answer.aiter_raw():
            whole, newline, rest = (rest + chunk).rpartition(b"\n")
            yield (whole + newline).replace(own, asked)
        yield rest.replace(own, asked)
    finally:
        await answer.aclose()


def main(path: str) -> None:
    """Starts the server and its front, as a file says, until SIGINT or SIGTERM.

    Args:
        path: A JSON file: `host`, `port`, `base` (a GGUF file), `served` (see `Served`), `settings` (see
            `make_params`) and `front` (arguments of uvicorn).

    Raises:
        TAIAError: If the settings are not llama.cpp's, or it cannot load the files.
    """
    uvicorn = import_or_raise("uvicorn", extra="serve", feature="llama.cpp")
    import_or_raise("starlette", extra="serve", feature="llama.cpp")
    import_or_raise("httpx", extra="serve", feature="llama.cpp")
    config = json.loads(Path(path).read_text(encoding="utf-8"))
    served, alias = Served.of(config["served"]), "taia"
    params = make_params(config["settings"])
    xllamacpp = sys.modules["xllamacpp"]
    params.model.path, params.model_alias = config["base"], {alias}
    files = [str(part.path) for part in served.parts if part.path]
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(file, 0.0) for file in files]
    try:
        server = xllamacpp.Server(params)
    except RuntimeError as error:
        raise ConfigError(
            f"llama.cpp cannot load '{config['base']}' with its LoRAs.",
            "Its own lines above say why; a chat template that it cannot read is replaced by -- --chat-template TEXT.",
        ) from error
    app = make_app(server.listening_address, served, alias)
    # a stream that is under way at the end is cut then
    uvicorn.run(app, host=config["host"], port=config["port"], timeout_graceful_shutdown=3, **config["front"])


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except TAIAError as error:
        sys.exit(f"Error: {error.message}\nHint: {error.hint}" if error.hint else f"Error: {error.message}")
