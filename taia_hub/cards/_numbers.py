"""Checks of the numbers on a card: the model index, the tables, and the mode that it recommends."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from taia_hub.cards import tables
from taia_hub.cards._findings import CardLine, Finding
from taia_hub.cards.data import CardData
from taia_hub.cards.escaping import plain
from taia_hub.cards.sections import front_matter
from taia_hub.results import Results, Row, Summary

_SCORE = re.compile(r"\(([-+]?[\d.,]+)\)")


def check_model_index(
    node: yaml.Node | None, metadata: Mapping[str, Any], results: Results | None
) -> Iterator[Finding]:
    """Compares each metric of the model index with the results file.

    Args:
        node: The card's metadata, with its lines.
        metadata: The same as values.
        results: What was evaluated.

    Yields:
        A finding a metric.
    """
    for path, metric in _metrics(metadata):
        line = line_of(node, *path, "value") or line_of(node, *path)
        given = metric.get("args")
        arguments = given if isinstance(given, dict) else {}
        name, value = str(metric.get("name") or metric.get("type")), metric.get("value")
        score = _score(results, arguments.get("task"), arguments.get("inference_modules"))
        if score is None:
            yield Finding(line, f"model-index {name}", False, "a task and mode of the results file", f"{value}")
        else:
            ok = isinstance(value, (int, float)) and abs(value - score) <= 1e-6
            yield Finding(line, f"model-index {name}", ok, f"{round(score, 6)}", f"{value}")


def check_tables(lines: Sequence[CardLine], data: CardData, summary: Summary | None) -> Iterator[Finding]:
    """Compares the tables of scores, differences and parts of the update with what is known.

    Args:
        lines: The lines of the card.
        data: What is known.
        summary: What the results say.

    Yields:
        A finding a row or cell.
    """
    seen: set[str] = set()
    scored = None
    for head, rows in _tables(lines):
        if head[1][0] == "part":
            yield from _check_parts(head[1], rows, data)
        elif head[1][0] == "task" and len(head[1]) > 1:
            if summary is None:
                yield Finding(head[0], f"table of {head[1][1]}", False, "a results file of this model", "none")
                continue
            is_scores = "items" in head[1]
            scored = head[0] if is_scores and scored is None else scored
            yield from (_check_scores if is_scores else _check_differences)(head[1], rows, summary, seen)
    if summary and scored is not None:
        for row in summary.rows:
            if row.key not in seen:
                yield Finding(scored, f"row {plain(row.title)}", False, "in the table", "missing")


def check_choice(lines: Sequence[CardLine], summary: Summary | None) -> Iterator[Finding]:
    """Compares the recommended mode and its score with the results.

    Args:
        lines: The lines of the card.
        summary: What the results say.

    Yields:
        Findings on mode and score.
    """
    said = [line for line in lines if line.generated and line.section == "Which mode to use" and line.kind == "text"]
    body = [line for line in said if line.text.strip() and not line.text.startswith("<!--")]
    if not body:
        return
    found = tables.choice(summary) if summary else None
    number, sentence = body[0].number, " ".join(line.text for line in body)
    mode = re.match(r"`([^`]+)`", sentence)
    if found is None:
        if mode:
            yield Finding(number, "recommended mode", False, "none: the results name no mode", mode[1])
        return
    said_mode = mode[1] if mode else None
    yield Finding(number, "recommended mode", said_mode == found.mode, found.mode, said_mode)
    if score := _SCORE.search(sentence):
        yield Finding(number, "its score", score[1] == found.score, found.score, score[1])
    if found.others and "noise" not in sentence.replace("beyond noise", ""):
        yield Finding(number, "its hedge", False, f"{', '.join(found.others)} within noise", "none")


def metadata_node(text: str) -> yaml.Node | None:
    """Reads a card's metadata with the lines of its values.

    Args:
        text: The card, whose YAML can be read.

    Returns:
        The root of the metadata, or None where there is none.
    """
    block, _, _ = front_matter(text)
    return yaml.compose(block, Loader=yaml.SafeLoader) if block else None


def line_of(node: yaml.Node | None, *path: str | int) -> int | None:
    """Finds the line of a value in a card's metadata.

    Args:
        node: What `metadata_node` gave.
        *path: Keys and positions that lead to it.

    Returns:
        The line from 1, or None where there is none.
    """
    line = None
    for step in path:
        if isinstance(node, yaml.MappingNode):
            pairs = [(key, value) for key, value in node.value if key.value == step]
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            pairs = [(node.value[step], node.value[step])]
        else:
            return None
        if not pairs:
            return None
        line, node = pairs[0][0].start_mark.line, pairs[0][1]
    return None if line is None else line + 2  # the line of dashes, and from 1


def _metrics(metadata: Mapping[str, Any]) -> Iterator[tuple[tuple[str | int, ...], dict[str, Any]]]:
    index = metadata.get("model-index")
    for first, model in enumerate(index if isinstance(index, list) else []):
        results = model.get("results") if isinstance(model, dict) else None
        for second, result in enumerate(results if isinstance(results, list) else []):
            metrics = result.get("metrics") if isinstance(result, dict) else None
            for third, metric in enumerate(metrics if isinstance(metrics, list) else []):
                if isinstance(metric, dict):
                    yield ("model-index", first, "results", second, "metrics", third), metric


def _score(results: Results | None, task: Any, label: Any) -> float | None:
    for key, one in results.tasks.items() if results else ():
        for name, mode in one.modes.items():
            if plain(key) == task and plain(name) == label:
                return mode.scores[one.metric]
    return None


def _tables(lines: Sequence[CardLine]) -> Iterator[tuple[tuple[int, list[str]], list[tuple[int, list[str]]]]]:
    """Yields head and rows of each table in the generated sections, with their lines."""
    rows: list[tuple[int, list[str]]] = []
    for line in [*lines, CardLine(0, "", "text", "", False)]:
        if line.generated and line.kind == "text" and line.text.lstrip().startswith("|"):
            inner = line.text.strip().removeprefix("|").removesuffix("|")
            rows.append((line.number, [cell.strip() for cell in re.split(r"(?<!\\)\|", inner)]))
        elif rows:
            if len(rows) > 1:
                yield rows[0], rows[2:]
            rows = []


def _check_scores(
    head: list[str], rows: list[tuple[int, list[str]]], summary: Summary, seen: set[str]
) -> Iterator[Finding]:
    modes = {tables.mode_name(mode): mode for mode in summary.modes}
    for number, cells in rows:
        names = cells[:4]
        row = _matching(summary, names, seen)
        if row is None:
            yield Finding(number, f"row {cells[0]}", False, "a task of the results file", " | ".join(names))
            continue
        seen.add(row.key)
        items = f"{row.items:,}"
        yield Finding(number, f"{cells[0]}, items", len(cells) > 2 and cells[2] == items, items, cells[2])
        for column, title in enumerate(head[4:], 4):
            shown = cells[column] if column < len(cells) else ""
            if title in modes:
                expected = tables.score_cell(row, modes[title])
                yield Finding(number, f"{cells[0]}, {title}", shown == expected, expected, shown)
            else:
                yield Finding(number, f"{cells[0]}, {title}", False, "a mode of the results file", shown)


def _check_differences(
    head: list[str], rows: list[tuple[int, list[str]]], summary: Summary, seen: set[str]
) -> Iterator[Finding]:
    pairs = {tables.pair_name(pair): pair for row in summary.rows for pair in row.differences}
    waiting = [row for row in summary.rows if row.depth == 0]
    for number, cells in rows:
        row = next((one for one in waiting if tables.row_names(one)[0] == cells[0]), None)
        if row is None:
            yield Finding(number, f"row {cells[0]}", False, "a task of the results file", cells[0])
            continue
        waiting.remove(row)
        for column, title in enumerate(head[1:], 1):
            shown = cells[column] if column < len(cells) else ""
            expected = tables.difference_cell(row.differences.get(pairs[title])) if title in pairs else ""
            yield Finding(number, f"{cells[0]}, {title}", shown == expected, expected, shown)


def _matching(summary: Summary, names: list[str], seen: set[str]) -> Row | None:
    for row in summary.rows:
        title, shots, _, metric = tables.row_names(row)
        if row.key not in seen and [title, shots] == names[:2] and names[3:4] == [metric]:
            return row
    return None


def _check_parts(head: list[str], rows: list[tuple[int, list[str]]], data: CardData) -> Iterator[Finding]:
    for number, cells in rows:
        part = data.parts.get(cells[0])
        if part is None:
            if data.parts:
                yield Finding(number, f"part {cells[0]}", False, "a role of the update", cells[0])
            continue
        expected = {"adapted modules": f"{part.modules:,}", "parameters": f"{part.parameters:,}"}
        if part.ranks:
            expected["rank"] = ", ".join(map(str, part.ranks))
        for column, title in enumerate(head):
            if title in expected and column < len(cells):
                ok = cells[column] == expected[title]
                yield Finding(number, f"{cells[0]}, {title}", ok, expected[title], cells[column])
