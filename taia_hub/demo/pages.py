"""The demo's report as pages to share: Markdown, one HTML file, and the figure."""

from __future__ import annotations

import html
from base64 import b64encode

from taia_hub.analysis.figures import Figure, draw_trade
from taia_hub.cards.escaping import text as escaped
from taia_hub.common.atomic import write_atomically
from taia_hub.common.text_tables import markdown_table
from taia_hub.demo.losses import MODES, DomainLosses
from taia_hub.demo.report import NAMES, DemoReport, conclusions
from taia_hub.results.statistics import Interval

_TITLE = "What a fine-tune costs, and what TAIA keeps"
_CAPTION = (
    "Loss on held-out answers in nats a token, less the base model's, with 95 % intervals by the bootstrap over "
    "the items; lower is better. In bold the lowest of a row."
)
_STYLE = """\
:root{color-scheme:light dark}
body{font:16px/1.55 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
h1{line-height:1.2}
img{width:100%;border-radius:.5rem;background:#fff}
.wide{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:.4rem .6rem;border-bottom:1px solid color-mix(in srgb,currentColor 25%,transparent);text-align:left}
td small{opacity:.75;white-space:nowrap}
.answers{display:grid;gap:1rem;grid-template-columns:repeat(auto-fit,minmax(min(100%,13rem),1fr))}
.answers section{border:1px solid color-mix(in srgb,currentColor 25%,transparent);border-radius:.5rem}
.answers section{padding:.5rem 1rem}
.answers h3{margin:.2rem 0}
.answers p,pre{white-space:pre-wrap;overflow-wrap:anywhere}
pre{padding:.75rem 1rem;border-radius:.5rem;background:color-mix(in srgb,currentColor 8%,transparent)}
"""


def write_pages(report: DemoReport) -> None:
    """Writes `report.md`, `report.html`, `report.png` and `report.svg` into the demo's folder.

    RepositoryError if they cannot be written.
    """
    gains = {domain.domain: {mode: domain.differences[mode, "none"] for mode in MODES[1:]} for domain in report.domains}
    inside = gains.pop(report.trained_domain)
    names = {mode: f"{NAMES[mode]} ({mode})" for mode in MODES}
    figure = draw_trade(report.trained_domain, inside, gains, names, report.folder, "report")
    write_atomically(report.pages["md"], _markdown(report, figure))
    write_atomically(report.pages["html"], _html(report, figure))


def _markdown(report: DemoReport, figure: Figure) -> str:
    rows = [
        [escaped(_row_name(one, report)), f"{one.losses['none'].value:.3f}", *(_bold(one, mode) for mode in MODES[1:])]
        for one in report.domains
    ]
    head = ["held-out items", *(f"{NAMES[mode]} `{mode}`" for mode in MODES)]
    answers = markdown_table(
        [f"{NAMES[mode]} `{mode}`" for mode in report.answers],
        [[escaped(text) for text in report.answers.values()]],
        left=range(len(report.answers)),
    )
    parts = [
        f"# {_TITLE}",
        escaped(_lead(report)),
        f"![{escaped(figure.alt)}]({figure.png.name})",
        markdown_table(head, rows),
        _CAPTION,
        "\n".join(f"- {escaped(line)}" for line in conclusions(report.domains, report.trained_domain)),
        "## One prompt, every mode",
        f"> {escaped(report.prompt)}",
        answers,
        "## What was run",
        "\n".join(f"- {name}: {escaped(value)}" for name, value in _facts(report).items()),
        "## What to type next",
        "```bash\n" + "\n".join(report.next_commands()) + "\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _html(report: DemoReport, figure: Figure) -> str:
    escape = html.escape
    image = b64encode(figure.svg.read_bytes()).decode()
    head = "".join(f"<th>{NAMES[mode]}<br><code>{mode}</code></th>" for mode in MODES)
    rows = "".join(
        f"<tr><th>{escape(_row_name(one, report))}</th><td>{one.losses['none'].value:.3f}</td>"
        + "".join(f"<td>{_cell(one, mode)}</td>" for mode in MODES[1:])
        + "</tr>"
        for one in report.domains
    )
    said = "".join(f"<li>{escape(line)}</li>" for line in conclusions(report.domains, report.trained_domain))
    answers = "".join(
        f'<section><h3>{NAMES[mode]} <code>{mode}</code></h3><p dir="auto">{escape(text)}</p></section>'
        for mode, text in report.answers.items()
    )
    facts = "".join(f"<tr><th>{name}</th><td>{escape(value)}</td></tr>" for name, value in _facts(report).items())
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{_TITLE}</title>
<style>
{_STYLE}</style></head><body>
<h1>{_TITLE}</h1>
<p>{escape(_lead(report))}</p>
<img src="data:image/svg+xml;base64,{image}" alt="{escape(figure.alt)}">
<div class="wide"><table><tr><th>held-out items</th>{head}</tr>{rows}</table></div>
<p><small>{_CAPTION}</small></p>
<ul>{said}</ul>
<h2>One prompt, every mode</h2>
<p dir="auto"><b>{escape(report.prompt)}</b></p>
<div class="answers">{answers}</div>
<h2>What was run</h2>
<div class="wide"><table>{facts}</table></div>
<h2>What to type next</h2>
<pre>{escape(chr(10).join(report.next_commands()))}</pre>
</body></html>
"""


def _lead(report: DemoReport) -> str:
    return (
        f"{report.base} was tuned on {report.trained_domain} answers with a LoRA on all its linear layers. Each mode "
        "lets one part of that update act: all of it (the vanilla fine-tune), that of attention (TAIA), that of the "
        "feed-forward layers (TAIF), or none (the base model)."
    )


def _facts(report: DemoReport) -> dict[str, str]:
    return {
        "base model": report.base,
        "trained on": f"{', '.join(report.data)}; {report.steps} steps, {report.tokens:,} tokens",
        "measured on": ", ".join(f"{one.items} {one.domain}" for one in report.domains) + " items",
        "versions": ", ".join(f"{name} {version}" for name, version in report.versions.items()),
        "time": report.took(),
    }


def _row_name(one: DomainLosses, report: DemoReport) -> str:
    return f"{one.domain}, tuned on it" if one.domain == report.trained_domain else one.domain


def _is_lowest(one: DomainLosses, mode: str) -> bool:
    return one.losses[mode].value == min(loss.value for loss in one.losses.values())


def _bold(one: DomainLosses, mode: str) -> str:
    value, ends = _change(one.differences[mode, "none"])
    return f"**{value}** {ends}" if _is_lowest(one, mode) else f"{value} {ends}"


def _cell(one: DomainLosses, mode: str) -> str:
    value, ends = _change(one.differences[mode, "none"])
    return f"<b>{value}</b> <small>{ends}</small>" if _is_lowest(one, mode) else f"{value} <small>{ends}</small>"


def _change(change: Interval) -> tuple[str, str]:
    return f"{change.value:+.3f}", f"({change.low:+.3f} to {change.high:+.3f})"
