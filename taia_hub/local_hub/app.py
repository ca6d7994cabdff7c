"""HTTP around the API: guards, routing, bodies too large for memory, errors as the Hub words them."""

from __future__ import annotations

import asyncio
import errno
import hmac
import re
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote

from taia_hub.local_hub import reading, uploads, writing
from taia_hub.local_hub.refusals import Reason, Refused
from taia_hub.local_hub.service import Call, FileReply, JsonReply, Service

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

App = Callable[
    [MutableMapping[str, Any], Callable[..., Awaitable[Any]], Callable[..., Awaitable[None]]], Awaitable[None]
]
FailureInjection = Callable[[str, str], "Response | int | None"]

_ROUTES = (*reading.ROUTES, *writing.ROUTES, *uploads.ROUTES)
_LOCAL_HOST = re.compile(r"(https?://)?(127\.0\.0\.1|localhost)(:\d+)?", re.IGNORECASE)
_WITHOUT_NAMESPACE = re.compile(
    r"/api/(models|datasets|spaces)/[^/]+(/(revision|tree|paths-info|preupload|commit)/.*)?|/[^/]+/resolve/.*"
)
_SMALL_BODY = 16 << 20
_STATUS = {
    Reason.REPO_NOT_FOUND: 404,
    Reason.REVISION_NOT_FOUND: 404,
    Reason.ENTRY_NOT_FOUND: 404,
    Reason.GATED: 401,
    Reason.EXISTS: 409,
    Reason.STALE_PARENT: 412,
    Reason.INVALID: 400,
    Reason.TOO_LARGE: 413,
    Reason.FORBIDDEN: 403,
    Reason.NO_TOKEN: 401,
    Reason.BAD_TOKEN: 401,
    Reason.UNKNOWN_CALL: 404,
}


def build_app(
    service: Service,
    *,
    require_token: bool,
    record: Callable[[str, str], None],
    fail: Callable[[], FailureInjection | None],
) -> App:
    """Returns the ASGI application of a local Hub.

    Args:
        service: The Hub that answers.
        require_token: Whether writing and private repositories need the token.
        record: Called with the method and the path of every request.
        fail: Returns what may answer in the API's place, or None.

    Returns:
        An ASGI application.
    """
    from starlette.requests import ClientDisconnect, Request

    async def app(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        # Only the raw path tells `refs%2Fpr%2F1`, one part, from `refs/pr/1`, three.
        path = scope["raw_path"].decode("ascii", "replace").split("?")[0]
        request = Request(scope, receive)
        record(request.method, path)
        injected = (injection := fail()) and injection(request.method, path)
        if isinstance(injected, int):
            injected = error_response(injected, "", f"A failure with status {injected} was injected.")
        try:
            response = injected or await _answer(service, request, path, require_token)
        except ClientDisconnect:
            return
        await response(scope, receive, send)

    return app


async def _answer(service: Service, request: Request, path: str, require_token: bool) -> Response:
    authorised = not require_token
    try:
        _check_origin(request)
        authorised = authorised or _has_token(request, service.store.disk.token)
        if match := _matches(request, "PUT", uploads.LARGE_FILE, path):
            return _response(await _receive_large_file(service, request, match["sha256"]))
        if match := _matches(request, "POST", uploads.COMMIT, path):
            call = _call(request, match, b"", authorised)
            return _response(await _receive_commit(service, request, call))
        for method, pattern, handler in _ROUTES:
            if match := _matches(request, method, pattern, path):
                call = _call(request, match, await _small(request), authorised)
                return _response(await asyncio.to_thread(handler, service, call))
        raise _unknown(request.method, path)
    except Refused as e:
        status = 401 if e.reason is Reason.REPO_NOT_FOUND and not authorised else _STATUS[e.reason]
        return error_response(status, e.reason.code, e.message, e.commit)
    except OSError as e:
        status = 507 if e.errno in (errno.ENOSPC, errno.EDQUOT) else 500
        return error_response(status, "", f"The local Hub could not read or write its folder: {e}.")


async def _receive_commit(service: Service, request: Request, call: Call) -> Any:
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
    return await asyncio.to_thread(uploads.commit, service, call, header, operations)


async def _receive_large_file(service: Service, request: Request, sha256: str) -> Any:
    query = request.query_params
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
    return {}


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


def _matches(request: Request, method: str, pattern: str, path: str) -> re.Match[str] | None:
    asked = "GET" if request.method == "HEAD" else request.method
    return re.fullmatch(pattern, path) if asked == method else None


def _call(request: Request, match: re.Match[str], body: bytes, authorised: bool) -> Call:
    parts = {name: unquote(part) for name, part in match.groupdict().items() if part is not None}
    return Call(parts, parse_qs(request.url.query), body, authorised)


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
    raise Refused(Reason.BAD_TOKEN, "Invalid credentials in Authorization header")


def _unknown(method: str, path: str) -> Refused:
    if _WITHOUT_NAMESPACE.fullmatch(path):
        message = f"There is no repository at '{path}' on this Hub: names have the form namespace/name."
        return Refused(Reason.REPO_NOT_FOUND, message)
    return Refused(Reason.UNKNOWN_CALL, f"A local Hub does not answer {method} {path}.")


def _response(reply: Any) -> Response:
    from starlette.responses import FileResponse, JSONResponse

    if isinstance(reply, FileReply):
        return FileResponse(reply.path, headers=reply.headers, media_type="application/octet-stream")
    value, status = (reply.value, reply.status) if isinstance(reply, JsonReply) else (reply, 200)
    return JSONResponse(value, status)


def error_response(status: int, code: str, message: str, commit: str | None = None) -> Response:
    """Returns an error as the client reads it.

    Args:
        status: The HTTP status.
        code: The `X-Error-Code`, or `""`.
        message: What went wrong, on one line in `X-Error-Message`.
        commit: The commit that was looked at, or None.

    Returns:
        The response.
    """
    from starlette.responses import JSONResponse

    line = " ".join(message.split()).encode("unicode_escape").decode()
    headers = {"X-Error-Message": line}
    if code:
        headers["X-Error-Code"] = code
    if commit:
        headers["X-Repo-Commit"] = commit
    return JSONResponse({"error": message}, status, headers=headers)
