"""A comparison as Markdown and as HTML; prompts and answers stay text, whatever they hold."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from taia_hub.cards.escaping import text as escaped
from taia_hub.common.text_tables import markdown_table
from taia_hub.compare.words import Part, readable

if TYPE_CHECKING:
    from taia_hub.compare.comparison import ComparedAnswer, Comparison

_TAGS = {"added": "ins", "left out": "del"}
_MARKS = {"added": "**", "left out": "~~"}
_STYLE = """\
.taia-comparison{display:grid;gap:1rem;grid-template-columns:repeat(auto-fit,minmax(min(100%,18rem),1fr));\
font-family:system-ui,sans-serif;line-height:1.5;color-scheme:light dark}
.taia-comparison section{border:1px solid color-mix(in srgb,currentColor 25%,transparent);border-radius:.5rem;\
padding:.75rem 1rem}
.taia-comparison h3{margin:0 0 .5rem}
.taia-comparison p{white-space:pre-wrap;overflow-wrap:anywhere;margin:.5rem 0}
.taia-comparison small{opacity:.8}
.taia-comparison ins{background:color-mix(in srgb,#0072b2 22%,transparent);text-decoration:underline}
.taia-comparison del{background:color-mix(in srgb,#d55e00 22%,transparent);text-decoration:line-through}
"""


def to_markdown(comparison: Comparison, against: str | None = None) -> str:
    """Writes a comparison as Markdown, with a newline at its end.

    What an answer has beyond that of the mode `against` is bold, what only that one has is struck out; None gives the
    answers alone, as they are.

    Raises:
        SettingError: If there is no answer of `against`.
    """
    against = comparison.answer(against).mode if against is not None else None
    lines = []
    for message in comparison.messages:
        lines += [f"**{message['role'].capitalize()}**", "", fenced(message["content"]), ""]
    for answer in comparison.answers:
        lines += [f"## {escaped(answer.title)}", ""]
        if against is not None and answer.mode != against:
            lines += [_marked(comparison.diff(answer.mode, against)), ""]
        else:
            lines += [fenced(answer.text), ""]
    lines += [_table(comparison), ""]
    lines += [f"*{escaped(note)}*\n" for note in comparison.notes]
    lines += [escaped(_how(comparison))]
    return "\n".join(lines) + "\n"


def to_html(comparison: Comparison, against: str | None = None) -> str:
    """Writes a comparison as a `<div>` with its style, a column an answer.

    Additions to the mode `against` are `<ins>`, omissions `<del>`.
    """
    against = comparison.answer(against).mode if against is not None else None
    columns = []
    for answer in comparison.answers:
        body = (
            diff_html(comparison.diff(answer.mode, against))
            if against is not None and answer.mode != against
            else html.escape(answer.text)
        )
        figures = html.escape(", ".join(_figures(answer)))
        columns.append(
            f'<section><h3>{html.escape(answer.title)}</h3><p dir="auto">{body}</p><small>{figures}</small></section>'
        )
    prompt = "".join(
        f'<p dir="auto"><b>{html.escape(message["role"].capitalize())}</b>\n{html.escape(message["content"])}</p>'
        for message in comparison.messages
    )
    return (
        f"<style>{_STYLE}</style>\n<div>{prompt}</div>\n"
        f'<div class="taia-comparison">{"".join(columns)}</div>\n'
        f"<p><small>{html.escape(_how(comparison))}</small></p>\n"
    )


def diff_html(parts: Iterable[Part]) -> str:
    """Writes the pieces of a word diff as escaped HTML, additions in `<ins>`, omissions in `<del>`.

    Example:
        >>> diff_html([Part("same", "a "), Part("added", "<b>")])
        'a <ins>&lt;b&gt;</ins>'
    """
    return "".join(
        f"<{tag}>{html.escape(part.text)}</{tag}>" if (tag := _TAGS.get(part.kind)) else html.escape(part.text)
        for part in readable(parts)
    )


def _marked(parts: Iterable[Part]) -> str:
    """Writes a word diff as a quotation, each of its lines escaped; a mark may hold no line break or outer space."""
    found = ""
    for part in readable(parts):
        mark = _MARKS.get(part.kind, "")
        for line in part.text.splitlines(keepends=True):
            words = line.strip()
            before, after = line[: len(line) - len(line.lstrip())], line[len(line.rstrip()) :]
            found += f"{before}{mark}{escaped(words)}{mark}{after}" if words else line
    return "\n".join(f"> {line}  " for line in found.splitlines())


def fenced(text: str) -> str:
    """Writes a text as a code block whose fence is longer than any in the text."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"


def _table(comparison: Comparison) -> str:
    head = ["mode", "tokens", "tokens/s"]
    if comparison.has_entropies:
        head.append("mean entropy (nats)")
    if comparison.has_likelihoods:
        head += [f"log-likelihood per token by {escaped(mode)}" for mode in comparison.modes]
    rows = []
    for answer in comparison.answers:
        row = [escaped(answer.title), str(len(answer.tokens)), _speed(answer)]
        if comparison.has_entropies:
            row.append(_mean(answer.entropy))
        if comparison.has_likelihoods:
            row += [nats(answer.per_token(mode)) for mode in comparison.modes]
        rows.append(row)
    return markdown_table(head, rows)


def nats(value: float | None) -> str:
    """Writes a mean of log-likelihoods or entropies; nothing for None."""
    return "" if value is None else f"{value:.2f}"


def _figures(answer: ComparedAnswer) -> list[str]:
    found = [f"{len(answer.tokens)} tokens"]
    if answer.tokens_per_second is not None:
        found.append(f"{_speed(answer)} tokens/s")
    if answer.entropy:
        found.append(f"mean entropy {_mean(answer.entropy)} nats")
    return found


def _speed(answer: ComparedAnswer) -> str:
    return "" if answer.tokens_per_second is None else f"{answer.tokens_per_second:.1f}"


def _mean(values: tuple[float, ...]) -> str:
    return f"{sum(values) / len(values):.2f}" if values else ""


def _how(comparison: Comparison) -> str:
    names = dict.fromkeys(answer.model for answer in comparison.answers if answer.model)
    where = " and ".join(names) or comparison.model or "a model"
    if comparison.revision:
        where += f" at {comparison.revision[:12]}"
    return f"{where}; " + ", ".join(f"{name}={value}" for name, value in comparison.generation.items())
