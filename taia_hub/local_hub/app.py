"""HTTP around the API: guards, routing, bodies too large for memory, errors as the Hub words them."""

from __future__ import annotations

import asyncio
import errno
import hmac
import re
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote

from taia_hub.local_hub import collecting, pages, reading, uploads, writing
from taia_hub.local_hub.refusals import Reason, Refused
from taia_hub.local_hub.service import API, CONVERTORS, Call, Handler, Service

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

App = Callable[[MutableMapping[str, Any], Any, Any], Awaitable[None]]
FailureInjection = Callable[[str, str], "Response | int | None"]

_LOCAL_HOST = re.compile(r"(https?://)?(127\.0\.0\.1|localhost)(:\d+)?", re.IGNORECASE)
_WITHOUT_NAMESPACE = re.compile(
    r"/api/(models|datasets|spaces)/[^/]+(/(revision|tree|paths-info|preupload|commit)/.*)?|/[^/]+/resolve/.*"
)
_SMALL_BODY = 16 << 20


def build_app(
    service: Service,
    *,
    require_token: bool,
    record: Callable[[str, str], None],
    fail: Callable[[], FailureInjection | None],
) -> App:
    """Returns the ASGI application of a local Hub.

    It calls `record` with the method and path of every request; what `fail` returns may answer in the API's place.
    Without `require_token`, writing and private repositories need no token.
    """
    from starlette.requests import Request

    hub = _routed(service)

    async def app(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        # Only the raw path tells `refs%2Fpr%2F1`, one part, from `refs/pr/1`, three.
        path = scope["raw_path"].decode("ascii", "replace").split("?")[0]
        request = Request({**scope, "path": path, "state": {"authorised": not require_token}})
        record(request.method, path)
        injected = (injection := fail()) and injection(request.method, path)
        if isinstance(injected, int):
            injected = _error(injected, "", f"A failure with status {injected} was injected.")
        answer = injected or await _guard(request, service.store.disk.token) or hub
        await answer(request.scope, receive, send)

    return app


def _routed(service: Service) -> App:
    from starlette.applications import Starlette
    from starlette.convertors import StringConvertor, register_url_convertor
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect
    from starlette.responses import Response
    from starlette.routing import Route

    async def unknown(request: Request, error: Any) -> Response:
        method, path = request.method, request.scope["path"]
        if _WITHOUT_NAMESPACE.fullmatch(path):
            message = f"There is no repository at '{path}' on this Hub: names have the form namespace/name."
            return await _refusal(request, Refused(Reason.REPO_NOT_FOUND, message))
        return await _refusal(request, Refused(Reason.UNKNOWN_CALL, f"A local Hub does not answer {method} {path}."))

    async def broken(request: Request, error: Any) -> Response:
        status = 507 if error.errno in (errno.ENOSPC, errno.EDQUOT) else 500
        return _error(status, "", f"The local Hub could not read or write its folder: {error}.")

    async def gone(request: Request, error: Any) -> Response:
        return Response(status_code=499)  # nobody reads it

    for name, regex in CONVERTORS.items():
        register_url_convertor(name, type(name, (StringConvertor,), {"regex": regex})())
    routes = [
        Route("/lfs/{sha256}", partial(_receive_large_file, service), methods=["PUT"]),
        Route(API + "/commit/{revision}", partial(_receive_commit, service), methods=["POST"]),
    ]
    for method, path, handler in (*reading.ROUTES, *writing.ROUTES, *uploads.ROUTES, *collecting.ROUTES, *pages.ROUTES):
        routes.append(Route(path, partial(_answer, service, handler), methods=[method]))
    failures: dict[type, Any] = {HTTPException: unknown, Refused: _refusal, OSError: broken, ClientDisconnect: gone}
    hub = Starlette(routes=routes, exception_handlers=failures)
    hub.router.redirect_slashes = False
    return hub


async def _answer(service: Service, handler: Handler, request: Request) -> Response:
    from starlette.responses import JSONResponse, Response

    reply = await asyncio.to_thread(handler, service, _call(request, await _small(request)))
    return reply if isinstance(reply, Response) else JSONResponse(reply)


async def _receive_commit(service: Service, request: Request) -> Response:
    from starlette.responses import JSONResponse

    call = _call(request)
    await asyncio.to_thread(service.writable, call)
    header, operations = None, []
    async for line in _lines(request.stream()):
        if line and not line.isspace():
            part = await asyncio.to_thread(uploads.stage, service, line)
            if isinstance(part, dict):
                header = part
            else:
                operations.append(part)
    if header is None:
        raise Refused(Reason.INVALID, "The commit has no header.")
    return JSONResponse(await asyncio.to_thread(uploads.commit, service, call, header, operations))


async def _receive_large_file(service: Service, request: Request) -> Response:
    from starlette.responses import JSONResponse

    sha256, query = request.path_params["sha256"], request.query_params
    size = int(query["size"]) if query.get("size", "").isdecimal() else -1
    if not hmac.compare_digest(query.get("signature", "").encode(), service.signature(sha256, size).encode()):
        raise Refused(Reason.FORBIDDEN, "The address of this upload is not one that this local Hub gave out.")
    with service.store.disk.draft() as draft:
        async for chunk in request.stream():
            if draft.size + len(chunk) > size:
                raise Refused(Reason.TOO_LARGE, f"The upload is longer than the {size} bytes that were announced.")
            await asyncio.to_thread(draft.write, chunk)
        if draft.blob().sha256 != sha256:
            message = f"The {draft.size} bytes that arrived have another sha256 than {sha256}. Upload the file again."
            raise Refused(Reason.INVALID, message)
        await asyncio.to_thread(service.store.disk.keep, draft)
    return JSONResponse({})


async def _lines(body: AsyncIterator[bytes]) -> AsyncIterator[bytearray]:
    # A line may hold a file of many megabytes: it is gathered in one buffer and never copied.
    line = bytearray()
    async for chunk in body:
        first, *others = chunk.split(b"\n")
        line += first
        for other in others:
            yield line
            line = bytearray(other)
    yield line


async def _small(request: Request) -> bytes:
    whole = b""
    async for chunk in request.stream():
        whole += chunk
        if len(whole) > _SMALL_BODY:
            raise Refused(Reason.TOO_LARGE, f"The body of this request is longer than {_SMALL_BODY} bytes.")
    return whole


def _call(request: Request, body: bytes = b"") -> Call:
    parts = {name: unquote(part) for name, part in request.path_params.items()}
    return Call(parts, parse_qs(request.url.query), body, request.state.authorised)


async def _guard(request: Request, token: str) -> Response | None:
    try:
        _check_origin(request)
        request.state.authorised = request.state.authorised or _has_token(request, token)
    except Refused as e:
        return await _refusal(request, e)
    return None


def _check_origin(request: Request) -> None:
    # A page in a browser may name a host of its own that resolves to 127.0.0.1, or send to us from its own origin.
    host, origin = request.headers.get("host", ""), request.headers.get("origin")
    if not _LOCAL_HOST.fullmatch(host) or (origin is not None and not _LOCAL_HOST.fullmatch(origin)):
        message = f"Requests for '{host}' from '{origin or 'no page'}' are refused: only this machine may use this Hub."
        raise Refused(Reason.FORBIDDEN, message)


def _has_token(request: Request, token: str) -> bool:
    given = request.headers.get("authorization")
    if given is None:
        return False
    if hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
        return True
    # The client knows this sentence: without it a wrong token would look like a missing repository.
    raise Refused(Reason.TOKEN, "Invalid credentials in Authorization header")


async def _refusal(request: Request, refused: Refused) -> Response:
    hidden = refused.reason is Reason.REPO_NOT_FOUND and not request.state.authorised
    status = 401 if hidden else refused.reason.status
    return _error(status, refused.reason.code, refused.message, refused.commit)


def _error(status: int, code: str, message: str, commit: str | None = None) -> Response:
    from starlette.responses import JSONResponse

    line = " ".join(message.split()).encode("unicode_escape").decode()
    headers = {"X-Error-Message": line}
    if code:
        headers["X-Error-Code"] = code
    if commit:
        headers["X-Repo-Commit"] = commit
    return JSONResponse({"error": message}, status, headers=headers)
