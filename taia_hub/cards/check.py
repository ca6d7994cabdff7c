"""Checking a card: every fact on it that files can confirm is compared with them, and reported line by line."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

from taia_hub.cards import _numbers
from taia_hub.cards._findings import CardLine, Finding, card_lines
from taia_hub.cards.data import CardData
from taia_hub.cards.sections import parse_card
from taia_hub.errors import ConfigError
from taia_hub.results import summarise

__all__ = ["CardFacts", "Finding", "check_card"]

_HEX = re.compile(r"(?<![0-9a-fA-F])([0-9a-f]{64}|[0-9a-f]{40})(?![0-9a-fA-F])")
_LINK = re.compile(r"(!?)\[(?:\\.|[^\]\\])*\]\(([^()\s]*)\)")
_DEFAULT = re.compile(r"by default `([^`]+)`")
_HUB = "https://huggingface.co/"


@dataclass(frozen=True)
class CardFacts:
    """What a card is checked against.

    Attributes:
        data: What a card of this repository would say.
        repo_id: The Hub id, or None for a folder, whose id nobody knows.
        files: Paths of the files in the repository, or None where they are not known.
        hashes: Path of a file to the sha256 of what it holds now.
        problems: What does not fit together among the files themselves.
    """

    data: CardData
    repo_id: str | None = None
    files: frozenset[str] | None = None
    hashes: Mapping[str, str] = field(default_factory=dict)
    problems: tuple[Finding, ...] = ()


def check_card(text: str, facts: CardFacts) -> list[Finding]:
    """Checks a card.

    Numbers, hashes, revisions and ids are checked in the sections that taia-hub writes (changed by a person or not),
    links and Python everywhere.

    Args:
        text: The card.
        facts: What is true.

    Returns:
        A finding for each fact that could be checked, in the order of the card.
    """
    try:
        parsed = parse_card(text)
    except ConfigError as error:
        return [Finding(1, "card can be read", False, None, error.message)]
    lines, node = card_lines(text, parsed), _numbers.metadata_node(text)
    summary = summarise(facts.data.results) if facts.data.results else None
    findings = [
        *facts.problems,
        *_check_metadata(node, parsed.metadata, facts.data),
        *_numbers.check_model_index(node, parsed.metadata, facts.data.results),
        *_numbers.check_tables(lines, facts.data, summary),
        *_numbers.check_choice(lines, summary),
        *_check_shas(lines, facts),
        *_check_links(lines, facts),
        *_check_python(lines, facts),
        *_check_default(lines, facts.data),
    ]
    return sorted(findings, key=lambda finding: finding.line or 0)


def _check_metadata(node: yaml.Node | None, metadata: Mapping[str, Any], data: CardData) -> Iterator[Finding]:
    expected: dict[str, Any] = {"library_name": "peft", "pipeline_tag": "text-generation"}
    if data.base_model:
        expected |= {"base_model": data.base_model, "base_model_relation": "adapter"}
    if data.license_fields.get("license"):
        expected["license"] = data.license_fields["license"]
    for key, value in expected.items():
        found = metadata.get(key)
        found = found[0] if isinstance(found, list) and len(found) == 1 else found
        # A licence other than the base's is a person's own decision; none at all is an omission.
        ok = bool(found) if key == "license" else found == value
        yield Finding(_numbers.line_of(node, key), f"metadata {key}", ok, str(value), _shown(found))
    tags = metadata.get("tags")
    has = isinstance(tags, list) and "taia" in tags
    yield Finding(_numbers.line_of(node, "tags"), "metadata tags", has, "taia among them", _shown(tags))


def _check_shas(lines: list[CardLine], facts: CardFacts) -> Iterator[Finding]:
    data = facts.data
    results, training = data.results, data.training
    by_file = dict(facts.hashes)
    weights = f"{data.adapter_path}/adapter_model.safetensors".lstrip("/")
    if data.adapter_sha256:
        by_file.setdefault(weights, data.adapter_sha256)
    known = {*by_file.values(), data.base_revision, data.adapter_revision}
    if results:
        known |= {results.model.revision, *(task.dataset.sha256 for task in results.tasks.values())}
        known |= {task.dataset.revision for task in results.tasks.values()}
    for one in training.datasets if training else ():
        known |= {one.sha256, one.revision}
    for line in lines:
        if not line.generated:
            continue
        for match in _HEX.finditer(line.text):
            sha = match[1]
            named = next((name for name in by_file if f"`{name}`" in line.text and "sha256" in line.text), None)
            if named:
                yield Finding(line.number, f"sha256 of {named}", by_file[named] == sha, by_file[named], sha)
            elif "base model revision" in line.text:
                yield Finding(line.number, "base model revision", data.base_revision == sha, data.base_revision, sha)
            else:
                what = "sha256" if len(sha) == 64 else "revision"
                yield Finding(line.number, what, sha in known, f"a {what} of this model's files", sha)


def _check_links(lines: list[CardLine], facts: CardFacts) -> Iterator[Finding]:
    data = facts.data
    trained = data.training.datasets if data.training else ()
    known = {data.base_model, data.adapter_repo, facts.repo_id, *(f"datasets/{one.id}" for one in trained if one.id)}
    anchors = {_slug(line.text) for line in lines if line.kind == "heading" or re.match(r" {0,3}#{3,6} ", line.text)}
    for line in lines:
        if line.kind == "code":
            continue
        for match in _LINK.finditer(re.sub(r"`+[^`]*`+", "", line.text)):
            target = match[2]
            address = urlsplit(target)
            if target.startswith("#"):
                yield Finding(line.number, f"link to {target}", target[1:] in anchors, "a heading of the card", target)
            elif not address.scheme and not address.netloc and facts.files is not None:
                path = unquote(address.path).removeprefix("./")
                there = path in facts.files or any(name.startswith(f"{path.rstrip('/')}/") for name in facts.files)
                yield Finding(line.number, f"link to {path}", there, "a file of the repository", path)
            elif line.generated and target.startswith(_HUB):
                name = target.removeprefix(_HUB)
                yield Finding(line.number, f"link to {name}", name in known, _shown(sorted(filter(None, known))), name)


def _check_python(lines: list[CardLine], facts: CardFacts) -> Iterator[Finding]:
    data = facts.data
    known = {name for name in (data.base_model, data.adapter_repo, facts.repo_id) if name}
    own = facts.repo_id
    for start, generated, source in _blocks(lines):
        try:
            tree = ast.parse(source)
        except SyntaxError as error:
            yield Finding(start + (error.lineno or 1), "Python compiles", False, None, str(error.msg))
            continue
        yield Finding(start, "Python compiles", True)
        for number, name in _loaded(tree) if generated else ():
            if own is None and name not in known:  # of a folder nobody knows the id: the card must agree with itself
                own = name
                known = {*known, name}
            yield Finding(start + number, f"loads {name}", name in known, " or ".join(sorted(known)), name)


def _blocks(lines: list[CardLine]) -> Iterator[tuple[int, bool, str]]:
    """Yields the line of each Python block's fence, whether it was generated, and its source."""
    start, generated, source = 0, False, list[str]()
    for line in lines:
        if line.kind != "code":
            continue
        word = line.text.strip()
        if not start and re.fullmatch(r"(`{3,}|~{3,})(python|py)", word):
            start, generated, source = line.number, line.generated, []
        elif start and re.fullmatch(r"`{3,}|~{3,}", word):
            yield start, generated, "\n".join(source)
            start = 0
        elif start:
            source.append(line.text)


def _loaded(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yields line and id of what a piece of Python loads from the Hub."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name == "from_pretrained":
            given = node.args[:2]
        elif name == "pipeline":
            given = [keyword.value for keyword in node.keywords if keyword.arg == "model"]
        else:
            continue
        for value in given:
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield value.lineno, value.value


def _check_default(lines: list[CardLine], data: CardData) -> Iterator[Finding]:
    for line in lines:
        if line.generated and line.kind == "text" and (match := _DEFAULT.search(line.text)):
            yield Finding(line.number, "published setting", match[1] == data.default, data.default, match[1])


def _slug(heading: str) -> str:
    words = re.sub(r"[^\w\- ]", "", heading.strip().lstrip("#").strip().lower())
    return words.replace(" ", "-")


def _shown(value: Any) -> str | None:
    if value is None:
        return None
    return value if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True, width=10_000).strip()
