"""Where training data comes from: files on this disk and data sets on the Hub, checked and made `messages`."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from taia_hub import hub
from taia_hub.cards.data import DatasetFacts
from taia_hub.cards.escaping import is_repo_id
from taia_hub.common.imports import import_or_raise
from taia_hub.common.jsonl import LineError
from taia_hub.errors import ConfigError, RepositoryError
from taia_hub.training.checking import Checked, Problems, check_rows
from taia_hub.training.forms import Form, find_form, to_messages
from taia_hub.training.rows import Row, open_rows

Progress = Callable[[str, int, int], None]

_VERSION = 1  # of the conversion: another one makes what was converted before out of date
_FILE = re.compile(r"\.(jsonl?|ndjson|parquet|csv)$", re.IGNORECASE)
_HUB = re.compile(r"(?P<id>[^@:\s]+/[^@:\s]+)(@(?P<revision>[^@:\s]+))?(:((?P<config>[^/:\s]+)/)?(?P<split>[^/:\s]+))?")


@dataclass(frozen=True)
class HubName:
    """A data set on the Hub, as `"org/name"`, `"org/name@revision"`, `"org/name:split"`, `"org/name:config/split"`.

    Attributes:
        id: Its id.
        revision: Branch, tag or commit; None for main.
        config: Its configuration; None for the only one.
        split: Its split.
    """

    id: str
    revision: str | None = None
    config: str | None = None
    split: str = "train"


@dataclass(frozen=True)
class Source:
    """Data whose every item can be trained on.

    Attributes:
        label: What it is called in the composition.
        dataset: N items, memory-mapped: `messages` and `source`.
        facts: What the record says of it; `items` are all that it has.
        checked: What is known of its items.
        fingerprint: Names its content and conversion.
    """

    label: str
    dataset: Any
    facts: DatasetFacts
    checked: Checked
    fingerprint: str

    def __len__(self) -> int:
        return len(self.checked)


@dataclass(frozen=True)
class _Opened:
    """A source that was found, before its items are looked at; `rows` may be gone through more than once."""

    facts: DatasetFacts
    content: str
    rows: Callable[[], Iterator[Row]]
    where: Callable[[int], str]
    verify: Callable[[], None] = lambda: None


def parse_name(name: str) -> Path | HubName:
    """Tells whether data is a file here or a data set on the Hub.

    Args:
        name: As the recipe has it.

    Returns:
        An existing file, or the parts of the name on the Hub.

    Raises:
        RepositoryError: If it is a folder, or looks like a file that is not there.
        ConfigError: If it is neither a file nor a possible name on the Hub.

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
    if name.startswith((".", "/", "~", "\\")) or _FILE.search(name):
        raise RepositoryError(f"The data '{name}' is no file here.", "Check the path.")
    if parts is None or not is_repo_id(parts["id"]):
        raise ConfigError(
            f"The data '{name}' is neither a file here nor a data set on the Hub.",
            "Give a path, or 'org/name', with '@revision' and ':split' or ':config/split' behind it where needed.",
        )
    return HubName(parts["id"], parts["revision"], parts["config"], parts["split"] or "train")


def read_sources(
    names: Sequence[str], *, token: str | bool | None = None, progress: Progress | None = None
) -> tuple[Source, ...]:
    """Reads, checks and converts data. Every item of every source is checked before anything is converted.

    Converted items lie in the cache of `datasets` as Arrow files, named by the content they were made of, so that the
    same data is converted once. Data sets of the Hub are fixed to the commit that their revision points to now.

    Args:
        names: Files and data sets on the Hub.
        token: Access token of the Hub, True for the stored one, False for none, None for the default.
        progress: Called with the name of a stage, steps done and steps in all.

    Returns:
        The sources, in the order of `names`.

    Raises:
        RepositoryError: If a file or data set is not there or cannot be read.
        ConfigError: If items are wrong, one is named twice, or a source is empty.
        MissingDependencyError: If `datasets` is not installed.
    """
    datasets = import_or_raise("datasets", "train", "Training")
    found = [parse_name(name) for name in names]
    labels = _labels(names, found)
    problems, opened, checked = Problems(), [], []
    for name, place, label in zip(names, found, labels, strict=True):
        one = _open_file(place, label) if isinstance(place, Path) else _open_hub(datasets, name, place, token)

        def told(share: float, label: str = label) -> None:
            if progress:
                progress(f"checking {label}", round(100 * share), 100)

        before = problems.count
        with _readable(name):
            known = check_rows(one.rows(), one.where, problems, told)
        if not len(known) and problems.count == before:
            raise ConfigError(f"The data '{name}' is empty.", "Leave it out, or give data with items.")
        opened.append(one)
        checked.append(known)
    problems.refuse()
    return tuple(_convert(datasets, *parts, progress) for parts in zip(labels, opened, checked, strict=True))


def cached_dataset(datasets: Any, rows: Callable[[], Iterator[dict[str, Any]]], fingerprint: str) -> Any:
    """Makes a data set of `messages` and `source`, or takes it from the cache of `datasets`.

    Args:
        datasets: The module.
        rows: Makes the items, one after the other.
        fingerprint: Names their content.

    Returns:
        The data set, memory-mapped.

    Raises:
        RepositoryError: If the disk is full or cannot be written, or what lies in the cache is damaged.
        ConfigError: If `rows` raises it.
    """
    pyarrow = import_or_raise("pyarrow", "train", "Training")
    text = datasets.Value("string")
    features = datasets.Features({"messages": [{"role": text, "content": text}], "source": text})
    try:
        with _quiet(datasets), hub.disk_errors(Path(datasets.config.HF_DATASETS_CACHE)):
            return datasets.Dataset.from_generator(rows, features=features, fingerprint=fingerprint)
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


def _damaged(datasets: Any, reason: str) -> RepositoryError:
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "generator"
    return RepositoryError(
        f"Data that was converted before cannot be read: {reason}.", f"Delete '{folder}'; it is made anew."
    )


def fingerprint_of(*parts: object) -> str:
    """Returns 32 hexadecimal digits that name what was made of these parts."""
    return hashlib.sha256("\0".join(map(str, (_VERSION, *parts))).encode()).hexdigest()[:32]


def _convert(datasets: Any, label: str, opened: _Opened, checked: Checked, progress: Progress | None) -> Source:
    fingerprint = fingerprint_of(opened.content, checked.form, label)
    form, total = checked.form, len(checked)

    def rows() -> Iterator[dict[str, Any]]:
        for done, row in enumerate(opened.rows()):
            if isinstance(row.item, LineError) or find_form(row.item) is not form:
                raise RepositoryError(f"The data '{label}' changed while it was read.", "Start again.")
            yield {"messages": to_messages(row.item, _known(form)), "source": label}
            if progress and done % 512 == 0:
                progress(f"converting {label}", done, total)
        opened.verify()

    dataset = cached_dataset(datasets, rows, fingerprint)
    if len(dataset) != total:
        raise _damaged(datasets, f"it holds {len(dataset)} items of '{label}' instead of {total}")
    if progress:
        progress(f"converting {label}", total, total)
    return Source(label, dataset, opened.facts, checked, fingerprint)


def _known(form: Form | None) -> Form:
    if form is None:
        raise ValueError("A source without items has no form.")
    return form


def _open_file(path: Path, label: str) -> _Opened:
    with _readable(path):
        rows, digest, size = open_rows(path), hub.sha256(path), path.stat().st_size

    def verify() -> None:
        if hub.sha256(path) != digest:
            raise RepositoryError(f"'{path}' changed while it was read.", "Start again.")

    join = ":" if rows.unit == "line" else f", {rows.unit} "
    facts = DatasetFacts(label, bytes=size, sha256=digest)
    return _Opened(facts, digest, lambda: iter(rows), lambda number: f"{path}{join}{number}", verify)


def _open_hub(datasets: Any, name: str, place: HubName, token: str | bool | None) -> _Opened:
    with hub.hub_errors(place.id, revision=place.revision, what="data set"):
        info = HfApi(library_name="taia-hub").dataset_info(place.id, revision=place.revision, token=token)
        sha = str(info.sha)
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
            yield Row(number, item, number / total)

    license = info.card_data.get("license") if info.card_data else None
    part = "" if (place.config, place.split) == (None, "train") else f":{place.config or ''}/{place.split}"
    facts = DatasetFacts(
        name=place.id + part.replace(":/", ":"),
        id=place.id,
        revision=sha,
        bytes=dataset.info.download_size,
        license=", ".join(license) if isinstance(license, list) else license,
    )
    content = f"{place.id}@{sha}:{place.config}/{place.split}"
    return _Opened(facts, content, rows, lambda number: f"{name}, row {number}")


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
