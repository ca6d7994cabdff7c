"""Comparing what a card says with the card that the files give: section by section, paragraph by paragraph."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import zip_longest
from typing import Any

import yaml

from taia_hub.cards._findings import CardLine, Finding
from taia_hub.cards.sections import front_matter

PERSONAL = ("license", "license_name", "license_link", "language", "datasets", "tags", "widget")
"""Metadata keys that a person may ask for; the mark of such a card has no hash of them."""

_OURS = re.compile(r"<!-- taia:[\w-]+ [^<>]*-->")
_HEADING = re.compile(r"#{1,6} ")
_ALONE = re.compile(r"\||#{1,6} |!\[")
_FENCE = re.compile(r"\s*(`{3,}|~{3,})\w*")
_ITEM = re.compile(r"[-*+] ")
_FACT = re.compile(r"[\d`|<>\[\]]")
_STATED = re.compile(r"`[^`]+`|\]\([^)]*\)|\w*\d[\w.,]*(?<![.,])")  # code, where a link leads, a number
_CONTEXT = 3  # words around a difference that are shown


@dataclass(frozen=True)
class _Block:
    """A paragraph, an item of a list, a row of a table or a line of code: what stays the same however it is wrapped."""

    words: tuple[str, ...]
    lines: tuple[int, ...]
    is_code: bool

    @property
    def text(self) -> str:
        return " ".join(self.words)

    @property
    def is_heading(self) -> bool:
        return not self.is_code and _HEADING.match(self.text) is not None

    @property
    def is_fact(self) -> bool:
        return self.is_code or (not self.is_heading and _FACT.search(self.text) is not None)

    @property
    def is_prose(self) -> bool:
        """Whether a person may have put it into words of their own: no code, row of a table or HTML."""
        return not self.is_code and not re.search(r"(?<!\\)[|<]", self.text)

    def keeps(self, other: _Block) -> bool:
        """Whether it is another block in a person's words: its words with more between them, or the same facts."""
        if not (self.is_prose and other.is_prose):
            return False
        own, wanted = ([word.strip(".,:;").casefold() for word in one.words] for one in (self, other))
        rest = iter(own)
        return (
            (self.is_heading and other.is_heading)
            or all(word in rest for word in wanted)
            or _STATED.findall(self.text) == _STATED.findall(other.text)
        )


def compare_sections(lines: Sequence[CardLine], true: Sequence[CardLine]) -> Iterator[Finding]:
    """Compares the sections of a card that taia-hub writes with what it would write now.

    A person's own sections and what stands between the user's markers do not count. Headings may be a person's, and so
    may text that was added, or says the same numbers, code and links in other words: that is only a warning.
    """
    expected, found = _by_section(true), _by_section(lines)
    titles = {line.title: name for name, section in expected.items() for line in section[:1] if line.title}
    for line in lines:  # a section whose marker was removed is still held to what it says
        name = titles.get(line.title)
        if line.section is None and name and name not in found:
            found[name] = [one for one in lines if one.section is None and one.title == line.title]
    for name, section in found.items():
        true_blocks = _blocks(expected.get(name, ()))
        for finding in _compared(section[0].title, _blocks(section), true_blocks, section[0].number):
            stale = name not in expected and finding.warning and _FACT.search(finding.found or "")
            yield dataclasses.replace(finding, ok=False, warning=False) if stale else finding
    for name, section in expected.items():
        if name not in found:
            yield Finding(1, f"section '{section[0].title}' is missing", False)


def compare_metadata(text: str, metadata: Mapping[str, Any], keys: Mapping[str, str], true: Any) -> Iterator[Finding]:
    """Compares a card's metadata with what the files give; a person's own keys and more items of a list stay."""
    block, _, _ = front_matter(text)
    node = yaml.compose(block, Loader=yaml.SafeLoader) if block else None
    for key, value in true.items():
        given = metadata.get(key)
        if key in PERSONAL and key not in ("tags", "datasets") and key not in keys and given:
            continue  # asked for with an option: a person's decision
        if key in ("license_name", "license_link") and "license" not in keys:
            continue  # they belong to the licence that is not on the card
        if key in PERSONAL and isinstance(given, list | str):
            items = given if isinstance(given, list) else [given]
            wanted = ["taia"] if key == "tags" else value if isinstance(value, list) else [value]
            has = all(item in items for item in wanted)
            yield Finding(_line_of(node, key), f"metadata {key}", has, _shown(value), _shown(given))
        else:
            yield from _differences(node, (key,), value, given)
    for key in metadata.keys() - true.keys():
        if key == "model-index" or (key in keys and key not in PERSONAL):
            yield Finding(_line_of(node, key), f"metadata {key}", False, None, _shown(metadata[key]))


def _by_section(lines: Sequence[CardLine]) -> dict[str, list[CardLine]]:
    found: dict[str, list[CardLine]] = {}
    for line in lines:
        if line.section is not None:
            found.setdefault(line.section, []).append(line)
    return found


def _blocks(lines: Sequence[CardLine]) -> list[_Block]:
    blocks: list[_Block] = []
    taken: list[tuple[str, int]] = []

    def close(is_code: bool = False) -> None:
        if taken:
            words, numbers = zip(*taken, strict=True)
            blocks.append(_Block(words, numbers, is_code))
            taken.clear()

    for line in lines:
        text = line.text.strip()
        if line.kind == "code":  # blanks at its beginning are part of what it says
            close()
            taken.extend([(line.text.rstrip(), line.number)] if text else [])
            close(is_code=True)
            continue
        if not text or line.kind != "text" or _ALONE.match(text) or _ITEM.match(text):
            close()
        if line.kind != "yours" and not _OURS.fullmatch(text):
            taken.extend((word, line.number) for word in text.split())
        if line.kind != "text" or _ALONE.match(text):
            close()
    close()
    return blocks


def _compared(title: str, found: Sequence[_Block], true: Sequence[_Block], first: int) -> Iterator[Finding]:
    matcher = SequenceMatcher(None, [one.text for one in found], [one.text for one in true], autojunk=False)
    for kind, start, end, true_start, true_end in matcher.get_opcodes():
        if kind == "equal":
            for block in found[start:end]:
                if block.is_fact and not (block.is_code and _FENCE.fullmatch(block.text)):
                    yield Finding(block.lines[0], f"'{title}': {_short(block.words)}", True)
            continue
        above = found[start - 1].lines[-1] if start else first
        left, missing = list(found[start:end]), list[_Block]()
        for other in true[true_start:true_end]:
            reworded = next((block for block in left if block.keeps(other)), None)
            if reworded is None:
                missing.append(other)
            else:
                left.remove(reworded)
                yield _difference(title, reworded, other, above)
        for block, lost in zip_longest(left, missing):
            yield _difference(title, block, lost, above)


def _difference(title: str, block: _Block | None, other: _Block | None, above: int) -> Finding:
    """Says where two blocks part, one of which may be missing."""
    words, true = (one.words if one else () for one in (block, other))
    pairs = list(zip(words, true, strict=False))
    same = next((index for index, (one, two) in enumerate(pairs) if one != two), len(pairs))
    rest = min(len(words), len(true)) - same
    ends = next((index for index in range(rest) if words[-1 - index] != true[-1 - index]), rest)
    line = block.lines[min(same, len(words) - 1)] if block else above
    said, wanted = (
        _short(one[max(0, same - _CONTEXT) : len(one) - max(0, ends - _CONTEXT)]) if one else None
        for one in (words, true)
    )
    if block is not None and (block.keeps(other) if other is not None else block.is_prose):
        is_fact = False
    else:
        is_fact = any(one is not None and one.is_fact for one in (block, other))
    return Finding(line, f"'{title}'", not is_fact, wanted, said, warning=not is_fact)


def _differences(node: yaml.Node | None, path: tuple[str | int, ...], value: Any, given: Any) -> Iterator[Finding]:
    """Walks two values of the metadata together."""
    steps: list[str | int] = []
    if isinstance(value, dict) and isinstance(given, dict):
        steps = list(dict.fromkeys([*value, *given]))
        pairs = [(value.get(step), given.get(step)) for step in steps]
    elif isinstance(value, list) and isinstance(given, list):
        pairs = list(zip_longest(value, given))
        steps = list(range(len(pairs)))
    else:
        same = value == given or (isinstance(given, list) and given == [value])
        name = ".".join(map(str, path))
        yield Finding(_line_of(node, *path), f"metadata {name}", same, _shown(value), _shown(given))
        return
    for step, (one, two) in zip(steps, pairs, strict=True):
        yield from _differences(node, (*path, step), one, two)


def _line_of(node: yaml.Node | None, *path: str | int) -> int | None:
    """Finds the line of a value in a card's metadata, or of what it should stand in."""
    line = None
    for step in path:
        if isinstance(node, yaml.MappingNode):
            pairs = [(key, value) for key, value in node.value if key.value == step]
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            pairs = [(node.value[step], node.value[step])]
        else:
            break
        if not pairs:
            break
        line, node = pairs[0][0].start_mark.line, pairs[0][1]
    return None if line is None else line + 2  # the line of dashes, and from 1


def _short(words: Sequence[str]) -> str:
    text = " ".join(words)
    return text if len(text) <= 160 else f"{text[:150]}…"


def _shown(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return _short([yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("...\n").strip()])
