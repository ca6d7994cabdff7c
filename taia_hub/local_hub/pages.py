"""Pages for a browser: what this Hub is, what it holds, and what a repository holds. Nothing in them acts."""

from __future__ import annotations

from html import escape
from typing import Any
from urllib.parse import quote

from taia_hub.local_hub.names import RepoKind
from taia_hub.local_hub.refusals import Reason, Refused
from taia_hub.local_hub.service import PAGES, Call, Routes, Service

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:50rem;margin:2rem auto;padding:0 1rem;color-scheme:light dark}"
    "pre{white-space:pre-wrap;overflow-wrap:anywhere;border:1px solid #8884;border-radius:6px;padding:1rem}"
    "td{padding:0 1.5rem 0 0}"
)


def home(service: Service, call: Call) -> Any:
    """Answers the address of the Hub: what it is, and its repositories."""
    parts, hidden = [], 0
    for kind in RepoKind:
        found = service.store.all(kind)
        shown = [one.repo_id for one in found if call.authorised or not one.settings.private]
        hidden += len(found) - len(shown)
        links = "".join(f'<li><a href="/{kind.prefix}{quote(name)}">{escape(name)}</a></li>' for name in shown)
        parts += [f"<h2>{kind.plural.capitalize()}</h2><ul>{links}</ul>"] if links else []
    said = "".join(parts) or "<p>It holds nothing yet: <code>taia push DIR you/name</code> publishes here.</p>"
    private = f"<p>{hidden} private {'repository is' if hidden == 1 else 'repositories are'} not shown.</p>"
    return _page(
        "A local Hub",
        "<p>A Hugging Face Hub in a folder, on this machine only (<code>taia hub</code>). Programs use it where "
        f"<code>HF_ENDPOINT={escape(service.endpoint)}</code>.</p>{said}{private if hidden else ''}",
    )


def repository(service: Service, call: Call) -> Any:
    """Answers the address of a repository: how to use it, its files and its card."""
    if call.path["namespace"] == "api":
        raise Refused(Reason.UNKNOWN_CALL, f"A local Hub does not answer GET /api/{call.path['repo']}.")
    found, commit = service.commit_of(call)
    place = f"/{found.kind.prefix}{quote(found.repo_id)}/resolve/{commit.sha}"
    rows = "".join(
        f'<tr><td><a href="{place}/{quote(path)}">{escape(path)}</a></td><td>{file.size:,} bytes</td></tr>'
        for path, file in sorted(commit.files.items())
    )
    card = commit.files.get("README.md")
    readable = card is not None and (call.authorised or not found.settings.gated)
    text = service.store.disk.blob_path(card.sha256).read_text("utf-8", "replace") if card and readable else ""
    return _page(
        found.repo_id,
        f'<p><a href="/">Local Hub</a> · {found.kind.value} · commit {commit.sha[:12]}</p>'
        f"<table>{rows}</table>{f'<pre>{escape(text)}</pre>' if text else ''}",
    )


def _page(title: str, body: str) -> Any:
    from starlette.responses import HTMLResponse

    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    policy = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}
    page = f'<!doctype html><html lang="en"><head>{head}<style>{_STYLE}</style></head>'
    return HTMLResponse(f"{page}<body><h1>{escape(title)}</h1>{body}</body></html>", headers=policy)


ROUTES: Routes = (
    ("GET", "/", home),
    *(("GET", page, repository) for page in reversed(PAGES)),
    *(("GET", page + "/commit/{revision}", repository) for page in reversed(PAGES)),
)
