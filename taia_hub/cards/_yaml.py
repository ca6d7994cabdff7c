"""The YAML at the head of a card: read as the Hub reads it, written again with a person's comments."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from huggingface_hub.utils import yaml_dump


class _Yaml(yaml.SafeLoader):
    """YAML as the Hub reads it: `no` is a text and no false, as in version 1.2."""


class _Fast(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """The same by libyaml, ten times as fast; it refuses a little more, and says less of where."""


_Yaml.yaml_implicit_resolvers = {
    first: [(tag, regex) for tag, regex in resolvers if tag != "tag:yaml.org,2002:bool"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Yaml.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"true|True|TRUE|false|False|FALSE"), list("tTfF"))
_Fast.yaml_implicit_resolvers = _Yaml.yaml_implicit_resolvers

_COMMENT = re.compile(r"(?:\A|(?<=\s))#")


@dataclass(frozen=True)
class _Entry:
    """A key of the metadata as it stands in a block.

    Attributes:
        value: Its value as Python writes it, which tells `1` from `true`.
        text: Its lines, with the comments above it.
    """

    value: str
    text: str
    comments: tuple[str, ...]


def read_metadata(block: str) -> dict[str, Any]:
    """Reads a card's YAML; a `yaml.YAMLError` where a key stands in it twice, a `TypeError` where it is no mapping."""
    return _read(block)[0]


def _read(block: str) -> tuple[dict[str, Any], yaml.Node | None]:
    try:
        return _read_with(_Fast(block))
    except yaml.YAMLError:
        return _read_with(_Yaml(block))


def _read_with(loader: Any) -> tuple[dict[str, Any], yaml.Node | None]:
    try:
        node = loader.get_single_node()
        keys = [key.value for key, _ in node.value] if isinstance(node, yaml.MappingNode) else []
        repeated = [key for key in keys if keys.count(key) > 1]
        if repeated:
            raise yaml.YAMLError(f"the key '{repeated[0]}' stands there twice")
        metadata = (loader.construct_document(node) if node else None) or {}
    finally:
        loader.dispose()
    if not isinstance(metadata, dict):
        raise TypeError("it is no mapping")
    return metadata, node


def rewrite(metadata: Mapping[str, Any], *blocks: str) -> str:
    r"""Writes metadata as YAML: a key that says what it said in `blocks` stays to the letter, and every comment stays.

    A comment beside a value that changed comes to stand above its key, that of a key that is gone at the end.

    Example:
        >>> rewrite({"license": "mit", "tags": ["b"]}, "license: 'mit' # mine\ntags: [a]  # ours")
        "license: 'mit' # mine\n# ours\ntags:\n- b"
    """
    parts = [_entries(block) for block in blocks]
    lines: list[str] = []
    ending = [comment for _, rest in parts for comment in rest]
    for key, value in metadata.items():
        entries = [entries[key] for entries, _ in parts if key in entries]
        fresh = _Entry(repr(value), yaml_dump({key: value}, sort_keys=False).strip(), ())
        same = [entry for entry in entries if entry.value == fresh.value]
        chosen = max(same, key=lambda entry: len(entry.comments), default=fresh)
        lines += dict.fromkeys(one for entry in entries for one in entry.comments if one not in chosen.comments)
        lines.append(chosen.text)
    ending += [one for entries, _ in parts for key in entries.keys() - metadata.keys() for one in entries[key].comments]
    text = "\n".join([*lines, *dict.fromkeys(ending)])
    if _says(text, metadata):
        return text
    # What stayed to the letter needs what did not, as an alias needs its anchor.
    comments = dict.fromkeys(comment for block in blocks for _, comment in _comments(block))
    return "\n".join([yaml_dump(dict(metadata), sort_keys=False).strip(), *comments])


def _says(text: str, metadata: Mapping[str, Any]) -> bool:
    try:
        return repr(read_metadata(text)) == repr(dict(metadata))
    except (yaml.YAMLError, TypeError):
        return False


def _entries(block: str) -> tuple[dict[Any, _Entry], list[str]]:
    """Cuts a block into its keys; also returns the comments that belong to none."""
    values, node = _read(block)
    comments, lines = _comments(block), block.split("\n")
    if not isinstance(node, yaml.MappingNode) or node.flow_style or len(node.value) != len(values):
        return {}, [comment for _, comment in comments]
    bounds = [_begin(lines, key.start_mark.line) for key, _ in node.value] + [_begin(lines, len(lines))]
    entries = {
        key: _Entry(
            repr(value),
            "\n".join(lines[start:end]),
            tuple(comment for number, comment in comments if start <= number < end),
        )
        for (key, value), start, end in zip(values.items(), bounds, bounds[1:], strict=False)
    }
    return entries, [comment for number, comment in comments if number >= bounds[-1]]


def _begin(lines: list[str], number: int) -> int:
    """Returns the first of the comments and blank lines above a line."""
    while number and (not lines[number - 1].strip() or lines[number - 1].startswith("#")):
        number -= 1
    return number


def _comments(block: str) -> list[tuple[int, str]]:
    """Lists the comments of a block, each with the number of its line, from 0."""
    scalars = []
    for token in yaml.scan(block, Loader=_Yaml):
        if isinstance(token, yaml.ScalarToken):
            start, end = token.start_mark.index, token.end_mark.index
            scalars.append((block.find("\n", start) if token.style in ("|", ">") else start, end))
    found, after = [], 0
    for match in _COMMENT.finditer(block):
        at = match.start()
        if at >= after and not any(start <= at < end for start, end in scalars):
            comment = block[at:].split("\n", 1)[0]
            found.append((block.count("\n", 0, at), comment.rstrip()))
            after = at + len(comment)
    return found
