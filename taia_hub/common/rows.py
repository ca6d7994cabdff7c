"""Files of training data, read an item at a time: memory grows with the file only where it is one JSON array."""

from __future__ import annotations

import codecs
import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from taia_hub.common.imports import import_or_raise
from taia_hub.common.jsonl import LineError, parse_lines, parse_object

_LONGEST = 64 << 20  # bytes of a line; more is a file of another kind
_SPACE = re.compile(r"[ \t\r\n]*")


class Row(NamedTuple):
    """An item of a file, or the reason why it cannot be used, and the share of the file that was read, 0 to 1.

    `place` is of its line where the file has lines, as in `":3"`, else of its row, as in `", row 3"`; from 1.
    """

    place: str
    item: dict[str, Any] | LineError
    done: float


def read_rows(path: Path) -> Iterator[Row]:
    """Reads a file, whose kind is found by its content: JSON Lines, one JSON array, Parquet; CSV by its ending.

    An array has to fit into memory; of the other kinds little more than an item is held.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "data.json"
        >>> _ = path.write_text('[{"prompt": "1 + 1?", "completion": "2"}]')
        >>> [(row.place, row.item) for row in read_rows(path)]
        [(':1', {'prompt': '1 + 1?', 'completion': '2'})]
    """
    with path.open("rb") as file:
        start = file.read(4096).removeprefix(codecs.BOM_UTF8)
    if start.startswith(b"PAR1"):
        return _read_parquet(path)
    if path.suffix.lower() == ".csv":
        return _read_csv(path)
    return _read_array(path) if start.lstrip().startswith(b"[") else _read_lines(path)


def _read_lines(path: Path) -> Iterator[Row]:
    size = path.stat().st_size
    with path.open("rb") as file:
        for number, item in parse_lines(_lines(file), parse_object):
            yield Row(f":{number}", item, file.tell() / size)


def _lines(file: BinaryIO) -> Iterator[bytes | LineError]:
    while line := file.readline(_LONGEST):
        too_long = len(line) == _LONGEST and not line.endswith(b"\n")
        yield LineError(f"longer than {_LONGEST >> 20} MiB") if too_long else line
        while too_long and (rest := file.readline(_LONGEST)) and not rest.endswith(b"\n"):
            pass


def _read_array(path: Path) -> Iterator[Row]:
    """Reads one JSON array; after a fault in it nothing behind it can be told apart."""
    line, before, place = 1, 0, 0
    text = ""

    def skip(start: int) -> int:
        match = _SPACE.match(text, start)
        return match.end() if match else start

    def number() -> int:
        nonlocal line, before
        line, before = line + text.count("\n", before, place), place
        return line

    try:
        text = path.read_bytes().decode("utf-8-sig")
        place = skip(skip(0) + 1)
        more = not text.startswith("]", place)
        while more:
            value, end = json.JSONDecoder().raw_decode(text, place)
            wrong = LineError(f"a JSON {type(value).__name__} instead of an object")
            yield Row(f":{number()}", value if isinstance(value, dict) else wrong, end / len(text))
            place = skip(end)
            if more := text.startswith(",", place):
                place = skip(place + 1)
        if not text.startswith("]", place):
            found = repr(text[place]) if place < len(text) else "the end of the file"
            raise LineError(f"no JSON: ',' is expected, not {found}")
        if (place := skip(place + 1)) < len(text):
            raise LineError("there is more behind the end of the array")
    except UnicodeDecodeError as e:
        yield Row(f":{1 + e.object[: e.start].count(10)}", LineError("not UTF-8"), 1.0)
    except json.JSONDecodeError as e:
        yield Row(f":{e.lineno}", LineError(f"no JSON: {e.msg}"), 1.0)
    except (ValueError, RecursionError) as e:
        yield Row(f":{number()}", e if isinstance(e, LineError) else LineError(f"no JSON: {e}"), 1.0)


def _read_parquet(path: Path) -> Iterator[Row]:
    pyarrow = import_or_raise("pyarrow", "train", "A Parquet file")
    parquet = import_or_raise("pyarrow.parquet", "train", "A Parquet file")
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=256):
                for item in batch.to_pylist():
                    number += 1
                    yield Row(f", row {number}", item, number / file.metadata.num_rows)
    except (pyarrow.ArrowException, UnicodeDecodeError) as e:
        yield Row(f", row {number + 1}", LineError(f"no Parquet: {' '.join(str(e).split())}"), 1.0)


def _read_csv(path: Path) -> Iterator[Row]:
    size, number = path.stat().st_size, 0
    with path.open("rb") as file:

        def lines() -> Iterator[str]:
            nonlocal number
            for line in file:
                number += 1
                yield (line.removeprefix(codecs.BOM_UTF8) if number == 1 else line).decode("utf-8")

        rows = csv.DictReader(lines(), strict=True)
        try:
            while True:
                # The header is read when the first row is asked for, and an item begins where the last one ended.
                names = rows.fieldnames or ()
                if len(set(names)) < len(names):
                    raise csv.Error(f"the header names a field twice: {', '.join(names)}")
                first = number + 1
                if (item := next(rows, None)) is None:
                    return
                short = None in item or any(value is None for value in item.values())
                wrong = LineError(f"it has not the {len(names)} fields of the header")
                yield Row(f":{first}", wrong if short else dict(item), file.tell() / size)
        except UnicodeDecodeError:
            yield Row(f":{number}", LineError("not UTF-8"), 1.0)
        except csv.Error as e:
            yield Row(f":{number}", LineError(f"no CSV: {e}"), 1.0)
