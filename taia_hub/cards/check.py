"""Checking a card: it is compared with the card that the repository's files give, and reported line by line."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from taia_hub.cards._comparison import compare_metadata, compare_sections
from taia_hub.cards._findings import CardLine, Finding, card_lines
from taia_hub.cards.data import CardData
from taia_hub.cards.rendering import VARIANTS, render_card
from taia_hub.cards.sections import ParsedCard, parse_card
from taia_hub.errors import ConfigError

__all__ = ["CardFacts", "Finding", "check_card"]

_LINK = re.compile(r"(!?)\[(?:\\.|[^\]\\])*\]\(([^()\s]*)\)")
_WRITTEN_BY = re.compile(r"^(?:\| written by \||- written by) taia-hub ([\w.+-]+)(?: \|)?$", re.MULTILINE)


@dataclass(frozen=True)
class CardFacts:
    """What a card is checked against.

    Attributes:
        data: What a card of this repository would say.
        repo_id: The Hub id, or None for a folder, whose id nobody knows.
        files: Paths of the files in the repository, or None where they are not known.
        hashes: Path of a file to the sha256 of what it holds now.
        problems: What does not fit together among the files themselves.
        template: Name of the template that was asked for; any of ours counts too.
        template_dir: Folder of templates that come before ours.
    """

    data: CardData
    repo_id: str | None = None
    files: frozenset[str] | None = None
    hashes: Mapping[str, str] = field(default_factory=dict)
    problems: tuple[Finding, ...] = ()
    template: str | None = None
    template_dir: Path | None = None


def check_card(text: str, facts: CardFacts) -> list[Finding]:
    """Checks a card: whatever the card that the files give says otherwise is wrong.

    What stands between the user's markers and in sections that a person added does not count, but for links into the
    repository and Python, which are checked everywhere. The version of taia-hub that a card says it was written by is
    taken for true: no file knows it.

    Args:
        text: The card.
        facts: What is true.

    Returns:
        A finding for each fact, in the order of the card.
    """
    try:
        parsed = parse_card(text)
    except ConfigError as error:
        return [Finding(1, "card can be read", False, None, error.message)]
    lines = card_lines(text, parsed)
    true_text = _true_card(text, parsed, facts)
    true = parse_card(true_text)
    findings = [
        *facts.problems,
        *compare_metadata(text, parsed.metadata, parsed.keys, true.metadata),
        *_check_links(lines, facts.files),
        *_check_python(lines),
    ]
    if parsed.ours or any(section.name for section in parsed.sections):
        findings += compare_sections(lines, card_lines(true_text, true))
    else:
        findings.append(Finding(1, "its text was not checked, for it bears no mark of taia-hub", True, warning=True))
    return sorted(findings, key=lambda finding: finding.line or 0)


def _true_card(text: str, parsed: ParsedCard, facts: CardFacts) -> str:
    """Renders the card that the files give, by the template whose sections are most like those of the card."""
    data = facts.data
    weights = data.weights_path
    version = _WRITTEN_BY.search(text.replace("\r\n", "\n"))
    data = dataclasses.replace(
        data,
        repo_id=facts.repo_id or data.repo_id,
        adapter_sha256=facts.hashes.get(weights, data.adapter_sha256),
        taia_version=version[1] if version else data.taia_version,
    )
    names = {section.name for section in parsed.sections if section.name}
    found: list[tuple[int, str]] = []
    for template in dict.fromkeys([facts.template or VARIANTS[0], *VARIANTS]):
        card = render_card(data, template, facts.template_dir)
        found.append((len(names ^ {section.name for section in parse_card(card).sections}), card))
        if not found[-1][0]:
            break
    return min(found, key=lambda one: one[0])[1]


def _check_links(lines: list[CardLine], files: frozenset[str] | None) -> Iterator[Finding]:
    """Checks links to headings and into the repository, whoever wrote them."""
    anchors = {_slug(line.text) for line in lines if line.kind == "heading" or re.match(r" {0,3}#{3,6} ", line.text)}
    for line in lines:
        if line.kind == "code":
            continue
        for match in _LINK.finditer(re.sub(r"`+[^`]*`+", "", line.text)):
            target, address = match[2], urlsplit(match[2])
            if target.startswith("#"):
                there, what = target[1:] in anchors, "heading of the card"
            elif not address.scheme and not address.netloc and files is not None:
                path = unquote(address.path).removeprefix("./")
                there = path in files or any(name.startswith(f"{path.rstrip('/')}/") for name in files)
                target, what = path, "file of the repository"
            else:
                continue
            yield Finding(line.number, f"link to {target}{'' if there else f', which is no {what}'}", there)


def _check_python(lines: list[CardLine]) -> Iterator[Finding]:
    for start, source in _blocks(lines):
        try:
            ast.parse(source)
        except SyntaxError as error:
            yield Finding(start + (error.lineno or 1), f"Python does not compile: {error.msg}", False)
        else:
            yield Finding(start, "Python compiles", True)


def _blocks(lines: list[CardLine]) -> Iterator[tuple[int, str]]:
    """Yields the line of each Python block's fence, and its source."""
    start, source = 0, list[str]()
    for line in lines:
        if line.kind != "code":
            continue
        word = line.text.strip()
        if not start and re.fullmatch(r"(`{3,}|~{3,})(python|py)", word):
            start, source = line.number, []
        elif start and re.fullmatch(r"`{3,}|~{3,}", word):
            yield start, "\n".join(source)
            start = 0
        elif start:
            source.append(line.text)


def _slug(heading: str) -> str:
    words = re.sub(r"[^\w\- ]", "", heading.strip().lstrip("#").strip().lower())
    return words.replace(" ", "-")
