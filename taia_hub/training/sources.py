"""Where training data comes from: files on this disk and data sets on the Hub, checked and made `messages`."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from huggingface_hub import metadata_load

from taia_hub import hub
from taia_hub.cards.data import DatasetFacts
from taia_hub.cards.escaping import is_repo_id
from taia_hub.common.imports import import_or_raise
from taia_hub.common.progress import Progress
from taia_hub.common.rows import Row, read_rows
from taia_hub.errors import ConfigError, RepositoryError
from taia_hub.training.checking import Problems, check_rows

_EVERY = 512  # items between two reports of progress
_VERSION = 3  # of the conversion: another one makes what was converted before out of date
_FILE = re.compile(r"\.(jsonl?|ndjson|parquet|csv)$", re.IGNORECASE)
_HUB = re.compile(r"(?P<id>[^@:\s]+/[^@:\s]+)(@(?P<revision>[^@:\s]+))?(:((?P<config>[^/:\s]+)/)?(?P<split>[^/:\s]+))?")


@dataclass(frozen=True)
class HubName:
    """A data set on the Hub, as `"org/name"`, `"org/name@revision"`, `"org/name:split"`, `"org/name:config/split"`."""

    id: str
    revision: str | None = None  # None: main
    config: str | None = None  # None: the only one
    split: str = "train"


@dataclass(frozen=True)
class Source:
    """Data whose every item can be trained on: N memory-mapped items, as of `cached_dataset`.

    `questions` and `answers` are (N,) int64 hashes of all turns but the last and of the last; `fingerprint` names
    content and conversion, and `facts.items` are all that there are.
    """

    label: str
    dataset: Any
    facts: DatasetFacts
    questions: np.ndarray
    answers: np.ndarray
    fingerprint: str


@dataclass(frozen=True)
class _Opened:
    """A source that was found, before its items are looked at; `content` names what they are."""

    facts: DatasetFacts
    content: str
    rows: Callable[[], Iterator[Row]]


def parse_name(name: str) -> Path | HubName:
    """Tells whether data is an existing file here or a data set on the Hub.

    RepositoryError for a folder, or for what looks like a file and is not there; ConfigError for no possible name.

    Example:
        >>> parse_name("org/name@v1:default/test")
        HubName(id='org/name', revision='v1', config='default', split='test')
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        raise RepositoryError(f"The data '{name}' is a folder.", "Name the files in it, or a data set on the Hub.")
    parts = _HUB.fullmatch(name)
    if hub.is_path(name) or _FILE.search(name):
        raise RepositoryError(
            f"The data '{name}' is no file here.{hub.meant(name, what='data set')}", "Check the path."
        )
    if parts is None or not is_repo_id(parts["id"]):
        raise ConfigError(
            f"The data '{name}' is neither a file here nor a data set on the Hub.{hub.meant(name, what='data set')}",
            "Give a path, or 'org/name', with '@revision' and ':split' or ':config/split' behind it where needed.",
        )
    return HubName(parts["id"], parts["revision"], parts["config"], parts["split"] or "train")


def read_sources(
    names: Sequence[str], *, token: str | bool | None = None, progress: Progress | None = None
) -> tuple[Source, ...]:
    """Reads, checks and converts data, in one pass over each source; the faults of all sources are told together.

    Converted items lie in the cache of `datasets` as Arrow files, named by the content they were made of, so that the
    same data is read once: later a file's bytes are compared by their hash. Data sets of the Hub are fixed to the
    commit that their revision points to now.
    """
    datasets = import_or_raise("datasets", "train", "Training")
    found = [parse_name(name) for name in names]
    problems, sources = Problems(), []
    for name, place, label in zip(names, found, _labels(names, found), strict=True):
        opened = _open_file(place, label) if isinstance(place, Path) else _open_hub(datasets, name, place, token)
        try:
            sources.append(_convert(datasets, name, label, opened, problems, progress))
        except _Wrong:  # the others are checked all the same
            continue
    problems.refuse()
    return tuple(sources)


class _Wrong(ConfigError):
    """Items of a source are wrong, and are told with those of the others."""


def cached_dataset(datasets: Any, rows: Callable[[], Iterator[dict[str, Any]]], fingerprint: str) -> Any:
    """Makes a data set of what `rows` yields, memory-mapped, or takes it from the cache of `datasets`.

    An item has `messages`, `source`, and the int64 hashes `question` and `answer`; `fingerprint` names their content.
    RepositoryError if the disk is full, or what lies in the cache is damaged.
    """
    pyarrow = import_or_raise("pyarrow", "train", "Training")
    text, number, flag = datasets.Value("string"), datasets.Value("int64"), datasets.Value("bool")
    turn = {"role": text, "content": text, "train": flag, "reasoning": text, "tools": text}
    features = datasets.Features({"messages": [turn], "source": text, "question": number, "answer": number})
    try:
        with _quiet(datasets), hub.disk_errors(Path(datasets.config.HF_DATASETS_CACHE)):
            dataset = datasets.Dataset.from_generator(rows, features=features, fingerprint=fingerprint)
    except datasets.exceptions.DatasetGenerationError as e:
        cause = e.__cause__ or e
        if isinstance(cause, OSError) and not isinstance(cause, RepositoryError):
            reason = cause.strerror or cause
            raise RepositoryError(
                f"The data could not be converted: {reason}.", "Free space, or check the disk."
            ) from e
        raise cause from None
    except (pyarrow.ArrowException, OSError) as e:
        if isinstance(e, RepositoryError):
            raise
        raise _damaged(datasets, " ".join(str(e).split())) from e
    total = dataset.info.splits["train"].num_examples  # as many as were written
    if len(dataset) != total:
        raise _damaged(datasets, f"it holds {len(dataset)} items instead of {total}")
    return dataset


def _damaged(datasets: Any, reason: str) -> RepositoryError:
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "generator"
    return RepositoryError(
        f"Data that was converted before cannot be read: {reason}.",
        f"Move '{folder}' elsewhere, or set HF_DATASETS_CACHE to another folder; the data is converted again.",
    )


def fingerprint_of(*parts: object) -> str:
    """Returns 32 hexadecimal digits that name what was made of these parts."""
    return hashlib.sha256("\0".join(map(str, (_VERSION, *parts))).encode()).hexdigest()[:32]


def _convert(
    datasets: Any, name: str, label: str, opened: _Opened, problems: Problems, progress: Progress | None
) -> Source:
    told = progress or (lambda stage, done, total: None)

    def counted() -> Iterator[Row]:
        for count, row in enumerate(opened.rows()):
            if count % _EVERY == 0:
                told(f"reading {label}, percent", round(100 * row.done), 100)
            yield row

    def rows() -> Iterator[dict[str, Any]]:
        before, empty = problems.count, True
        with _readable(name):
            for item in check_rows(counted(), name, problems):
                yield {**item, "source": label}
                empty = False
        if problems.count > before:
            raise _Wrong("Items are wrong.")
        if empty:
            raise ConfigError(f"The data '{name}' is empty.", "Leave it out, or give data with items.")

    fingerprint = fingerprint_of(opened.content, label)
    dataset = cached_dataset(datasets, rows, fingerprint)
    told(f"reading {label}, percent", 100, 100)
    hashes = dataset.with_format("numpy")
    return Source(label, dataset, opened.facts, hashes["question"][:], hashes["answer"][:], fingerprint)


def _open_file(path: Path, label: str) -> _Opened:
    with _readable(path):
        size, digest = path.stat().st_size, hub.sha256(path)

    def rows() -> Iterator[Row]:
        yield from read_rows(path)
        if hub.sha256(path) != digest:  # sizes and times can stay the same
            raise RepositoryError(f"'{path}' changed while it was read.", "Start again.")

    return _Opened(DatasetFacts(label, bytes=size, sha256=digest), digest, rows)


def _open_hub(datasets: Any, name: str, place: HubName, token: str | bool | None) -> _Opened:
    access = hub.HubAccess(token=token)
    found = hub.fetch(
        place.id, [hub.CARD], revision=place.revision, access=access, what=hub.DATA, local=True, kind="dataset"
    )
    sha = str(found.revision)
    with hub.hub_errors(place.id, revision=place.revision, what=hub.DATA, local=True):
        try:
            with _quiet(datasets):
                dataset = datasets.load_dataset(place.id, place.config, revision=sha, split=place.split, token=token)
        except (datasets.exceptions.DatasetsError, ValueError) as e:
            reason = " ".join(str(e.__cause__ or e).split())
            raise ConfigError(
                f"The data set '{name}' (commit {sha[:8]}) cannot be read: {reason}",
                "Name a split or configuration that it has: 'org/name:split' or 'org/name:config/split'.",
            ) from e
    total = max(1, len(dataset))

    def rows() -> Iterator[Row]:
        for number, item in enumerate(dataset, 1):
            yield Row(f", row {number}", item, number / total)

    license = _license(found.folder / hub.CARD)
    part = "" if (place.config, place.split) == (None, "train") else f":{place.config or ''}/{place.split}"
    facts = DatasetFacts(
        name=place.id + part.replace(":/", ":"),
        id=place.id,
        revision=sha,
        bytes=dataset.info.download_size,
        license=", ".join(license) if isinstance(license, list) else license,
    )
    content = f"{place.id}@{sha}:{place.config}/{place.split}"
    return _Opened(facts, content, rows)


def _license(card: Path) -> Any:
    """Reads the licence of a data set from its card, which decorates ours."""
    try:
        return (metadata_load(card) or {}).get("license") if card.is_file() else None
    except (ValueError, yaml.YAMLError):
        return None


def _labels(names: Sequence[str], places: Sequence[Path | HubName]) -> list[str]:
    """Returns a label for each source: the name of a file with as many folders as tell it from the others."""
    same = [place.resolve() if isinstance(place, Path) else place for place in places]
    for number, place in enumerate(same):
        if place in same[:number]:
            raise ConfigError(f"The data '{names[number]}' is named twice.", "Name it once; `epochs` repeats items.")
    labels = [place.name if isinstance(place, Path) else name for name, place in zip(names, same, strict=True)]
    for depth in range(2, 64):
        double = {label for label in labels if labels.count(label) > 1}
        if not double:
            break
        labels = [
            "/".join(place.parts[-depth:]) if isinstance(place, Path) and label in double else label
            for label, place in zip(labels, same, strict=True)
        ]
    return labels


@contextlib.contextmanager
def _readable(name: object) -> Iterator[None]:
    try:
        yield
    except RepositoryError:
        raise
    except OSError as e:
        raise RepositoryError(f"The data '{name}' cannot be read: {e.strerror or e}.", "Check the file.") from e


@contextlib.contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    """Hides the bars of `datasets`, which would run into ours."""
    hidden = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not hidden:
            datasets.enable_progress_bars()
