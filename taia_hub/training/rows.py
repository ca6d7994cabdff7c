"""Files of training data, read an item at a time: memory does not grow with the file."""

from __future__ import annotations

import codecs
import csv
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from taia_hub.common.imports import import_or_raise
from taia_hub.common.jsonl import LineError, parse_object

_LONGEST = 64 << 20  # bytes of one item; more is a file of another kind
_CHUNK = 1 << 20
_BOM = codecs.BOM_UTF8
_SPACE = re.compile(r"[ \t\r\n]*")


class Row(NamedTuple):
    """An item of a file.

    Attributes:
        number: Of its line where the file has lines, else of its row; from 1.
        item: The item, or the reason why it cannot be used.
        done: Share of the file that was read, 0 to 1.
    """

    number: int
    item: dict[str, Any] | LineError
    done: float


@dataclass(frozen=True)
class RowFile:
    """A file and how its items are read.

    Attributes:
        path: The file.
        unit: What the numbers of its items count: `"line"` or `"row"`.
        read: Reads it from the start.
    """

    path: Path
    unit: str
    read: Callable[[Path], Iterator[Row]]

    def __iter__(self) -> Iterator[Row]:
        return self.read(self.path)


def open_rows(path: Path) -> RowFile:
    """Finds out how a file is read, by its content: JSON Lines, one JSON array, Parquet; CSV by its ending.

    Args:
        path: The file.

    Returns:
        Its items, which may be gone through more than once.

    Raises:
        OSError: If it cannot be read.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "data.json"
        >>> _ = path.write_text('[{"prompt": "1 + 1?", "completion": "2"}]')
        >>> [row.item for row in open_rows(path)]
        [{'prompt': '1 + 1?', 'completion': '2'}]
    """
    with path.open("rb") as file:
        start = file.read(4096).removeprefix(_BOM)
    if start.startswith(b"PAR1"):
        return RowFile(path, "row", _read_parquet)
    if path.suffix.lower() == ".csv":
        return RowFile(path, "line", _read_csv)
    return RowFile(path, "line", _read_array if start.lstrip().startswith(b"[") else _read_lines)


def _read_lines(path: Path) -> Iterator[Row]:
    size = max(1, path.stat().st_size)
    with path.open("rb") as file:
        number = read = 0
        while line := file.readline(_LONGEST):
            number, read = number + 1, read + len(line)
            if len(line) == _LONGEST and not line.endswith(b"\n"):
                read += _skip_line(file)
                yield Row(number, LineError(f"longer than {_LONGEST >> 20} MiB"), read / size)
                continue
            try:
                text = (line.removeprefix(_BOM) if number == 1 else line).decode("utf-8").strip()
                if text:
                    yield Row(number, parse_object(text), read / size)
            except UnicodeDecodeError:
                yield Row(number, LineError("not UTF-8"), read / size)
            except LineError as e:
                yield Row(number, e, read / size)


def _skip_line(file: BinaryIO) -> int:
    read = 0
    while part := file.readline(_CHUNK):
        read += len(part)
        if part.endswith(b"\n"):
            break
    return read


def _read_array(path: Path) -> Iterator[Row]:
    """Reads one JSON array an element at a time; after a fault in it nothing behind it can be told apart."""
    size = max(1, path.stat().st_size)
    with path.open("rb") as file:
        text = _Window(file)
        try:
            text.skip("[")
            if text.peek() == "]":
                text.skip("]")
            else:
                while True:
                    text.peek()
                    number, value = text.line, text.value()
                    wrong = LineError(f"a JSON {type(value).__name__} instead of an object")
                    yield Row(number, value if isinstance(value, dict) else wrong, file.tell() / size)
                    if text.peek() == "]":
                        text.skip("]")
                        break
                    text.skip(",")
            if text.peek():
                raise LineError("there is more behind the end of the array")
        except UnicodeDecodeError as e:
            yield Row(text.line_behind(e.object[: e.start]), LineError("not UTF-8"), 1.0)
        except LineError as e:
            yield Row(text.line, e, 1.0)


class _Window:
    """The part of a file of JSON that is looked at."""

    def __init__(self, file: BinaryIO) -> None:
        self.line = 1
        self._file = file
        self._decode = codecs.getincrementaldecoder("utf-8-sig")().decode
        self._json = json.JSONDecoder()
        self._text, self._at, self._ended = "", 0, False

    def peek(self) -> str:
        """Returns the next character that is no space, or `""` at the end."""
        while True:
            match = _SPACE.match(self._text, self._at)
            self._advance(match.end() if match else self._at)
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def skip(self, wanted: str) -> None:
        """Goes past one character that must come next."""
        if (found := self.peek()) != wanted:
            raise LineError(f"no JSON: '{wanted}' is expected, not {repr(found) if found else 'the end of the file'}")
        self._advance(self._at + 1)

    def value(self) -> Any:
        """Returns the value that comes next and goes past it."""
        while True:
            try:
                value, end = self._json.raw_decode(self._text, self._at)
            except json.JSONDecodeError as e:
                # An error far from the end of what was read is one whatever follows.
                cut = e.pos >= len(self._text) - 16 or e.msg.startswith("Unterminated string")
                if cut and len(self._text) - self._at < _LONGEST and self._more():
                    continue
                raise LineError(f"no JSON: {e.msg}") from e
            except (ValueError, RecursionError) as e:
                raise LineError(f"no JSON: {e}") from e
            if end < len(self._text) or not self._more():
                self._advance(end)
                return value

    def line_behind(self, piece: bytes) -> int:
        """Returns the number of the line that a piece ends in which follows what was read."""
        return self.line + self._text.count("\n", self._at) + piece.count(b"\n")

    def _advance(self, to: int) -> None:
        self.line += self._text.count("\n", self._at, to)
        self._at = to

    def _more(self) -> bool:
        if self._ended:
            return False
        # Longer pieces for longer values, so that they are not parsed over and over.
        chunk = self._file.read(max(_CHUNK, len(self._text) - self._at))
        self._ended = not chunk
        self._text, self._at = self._text[self._at :] + self._decode(chunk, self._ended), 0
        return True


def _read_parquet(path: Path) -> Iterator[Row]:
    pyarrow = import_or_raise("pyarrow", "train", "A Parquet file")
    parquet = import_or_raise("pyarrow.parquet", "train", "A Parquet file")
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=256):
                for item in batch.to_pylist():
                    number += 1
                    yield Row(number, item, number / file.metadata.num_rows)
    except (pyarrow.ArrowException, UnicodeDecodeError) as e:
        yield Row(number + 1, LineError(f"no Parquet: {' '.join(str(e).split())}"), 1.0)


def _read_csv(path: Path) -> Iterator[Row]:
    size = max(1, path.stat().st_size)
    with path.open("rb") as file:
        number = 0

        def lines() -> Iterator[str]:
            nonlocal number
            for line in file:
                number += 1
                yield (line.removeprefix(_BOM) if number == 1 else line).decode("utf-8")

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
                yield Row(first, wrong if short else dict(item), file.tell() / size)
        except UnicodeDecodeError:
            yield Row(number, LineError("not UTF-8"), 1.0)
        except csv.Error as e:
            yield Row(number, LineError(f"no CSV: {e}"), 1.0)
