"""Damages to repositories, drawn from a seed: what may become of files on their way, and what somebody may write.

As a script it tries many: `python -m tests.damages 5000 [SEED]`.
"""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from taia_hub import TAIAForCausalLM
from taia_hub.errors import TAIAError
from taia_hub.repository import loading
from taia_hub.repository.creating import create_repository
from taia_hub.repository.info import repository_info

SECONDS = 20
"""What takes longer hangs."""
_DEEP = "@deep@"
_CONSTANTS = ("@NaN@", "@Infinity@", "@-Infinity@", "@1e999@", "@1e38@", "@1e-38@", "@123456789012345678901234567890@")
_VALUES: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 2, 7, 0.5, 10**300, -(2**63), "", " ", "x", "none", "NaN", "\ud800", "\x1b[31m"),
    *("all", "LORA", "IA3", "DORA", "x" * 100_000, "../..", "/etc/passwd", "/dev/zero", "a/b", "0" * 40, "C:\\x"),
    *([], {}, [[]], [None], {"": None}, {"x": {"y": []}}, [1] * 10_000, {str(one): 1 for one in range(10_000)}),
    *("(.*)*!", r"(\w+\.?)+!", "(?:[a-z_.0-9]?){40}#", "(", "*", "[", "*" * 100, ".*", {"(.*)*!": 4}, [".*"] * 50),
    *(_DEEP, *_CONSTANTS),
)
_KEYS = ("", "x", "lora_alpha", "peft_type", "auto_map", "__class__", "quantization_config", "\ud800", "k" * 10_000)


@dataclass(frozen=True)
class Fault:
    """A damage that did not end as it must."""

    number: int
    damage: str
    call: str
    what: str


def _nested(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yields the path of every value in JSON values but the outermost."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inside in items:
        yield (*path, key)
        yield from _nested(inside, (*path, key))


def _changed(value: Any, draw: random.Random) -> Any:
    """Returns another value than this one, near it or far from it."""
    near: list[Any] = [str(value), [value], {"x": value}]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        near += [value * 2, value + 1, -value, value / 2, float(value), value * 1e30]
    elif isinstance(value, bool):
        near += [not value]
    elif isinstance(value, str):
        near += [value.upper(), value + "x", value[:-1], value.replace("_", ".")]
    elif isinstance(value, list) and value:
        near += [value[:-1], value + value, value[::-1]]
    elif isinstance(value, dict) and value:
        near += [dict(list(value.items())[1:]), list(value)]
    return draw.choice(near if draw.random() < 0.5 else _VALUES)


def _in_json(path: Path, draw: random.Random) -> str:
    """Changes one field of a JSON file."""
    values = json.loads(path.read_text())
    top = [(key,) for key in values]
    *above, key = draw.choice(top if draw.random() < 0.6 else list(_nested(values)))
    inside = values
    for part in above:
        inside = inside[part]
    before, how = inside[key], draw.choice(("change",) * 6 + ("remove", "rename", "add"))
    if how == "change":
        inside[key] = _changed(before, draw)
    elif how == "add" and isinstance(inside, dict):
        inside[draw.choice(_KEYS)] = draw.choice(_VALUES)
    else:
        del inside[key]
        if how == "rename" and isinstance(inside, dict):
            inside[draw.choice((f"{key}s", f"_{key}", str(key).upper(), *_KEYS))] = before
    text = json.dumps(values)
    for constant in _CONSTANTS:
        text = text.replace(f'"{constant}"', constant.strip("@"))
    path.write_text(text.replace(f'"{_DEEP}"', "[" * 50_000 + "]" * 50_000))
    now = inside[key] if how == "change" else list(inside)[-1:]
    return f"{how} {'.'.join(map(str, [*above, key]))} to {str(now)[:60]!r}"


def _bytes(path: Path, draw: random.Random) -> str:
    """Changes a file without a look at what it means."""
    data = bytearray(path.read_bytes())
    where = draw.randrange(len(data))
    how = draw.choice(("flip", "flip", "flip", "cut", "append", "empty", "noise", "swap", "zeros", "head"))
    if how == "flip":
        data[where] ^= 1 << draw.randrange(8)
    elif how == "cut":
        del data[where:]
    elif how == "append":
        data += draw.randbytes(16)
    elif how == "empty":
        data.clear()
    elif how == "noise":
        data[where : where + 16] = draw.randbytes(len(data[where : where + 16]))
    elif how == "swap":
        other = draw.randrange(len(data))
        data[where : where + 64], data[other : other + 64] = data[other : other + 64], data[where : where + 64]
    elif how == "zeros":
        data[where:] = bytes(len(data) - where)
    else:
        data[:8] = draw.choice((b"\xff" * 8, bytes(8), b"\x00\xff" * 4, b"\xef\xbb\xbf{}   "))
    path.write_bytes(data)
    return f"{how} at {where}"


def _file(path: Path, others: list[Path], draw: random.Random) -> str:
    """Takes a file away, or puts something else in its place."""
    how = draw.choice(("remove", "folder", "zero", "null", "loop", "nowhere", "pipe", "rename", "other", "denied"))
    path.unlink()
    if how == "folder":
        path.mkdir()
    elif how in ("zero", "null"):
        path.symlink_to(f"/dev/{how}")
    elif how == "loop":
        path.symlink_to(path)
    elif how == "nowhere":
        path.symlink_to(path.with_name("nowhere"))
    elif how == "pipe":
        os.mkfifo(path)
    elif how == "rename":
        path.with_name(f"{path.name}.bak").touch()
    elif how == "other":
        shutil.copyfile(draw.choice(others), path)
    elif how == "denied":
        path.touch(0o000)
    return how


def damage(folder: Path, others: list[Path], draw: random.Random) -> str:
    """Damages one file of a repository and says how; `others` are files that may be taken for it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix in (".json", ".safetensors"))
    configs = [path for path in files if path.suffix == ".json"]
    kind = draw.random()
    path = draw.choice(configs if kind < 0.6 else files)
    said = _in_json(path, draw) if kind < 0.6 else _bytes(path, draw) if kind < 0.85 else _file(path, others, draw)
    return f"{path.relative_to(folder)}: {said}"


def try_damages(repositories: dict[str, tuple[Path, Path]], count: int, seed: int = 0) -> list[Fault]:
    """Damages repositories and calls what reads them; returns what loaded with other logits, hung, or failed foreignly.

    `repositories` are name to base model and repository, both folders.
    """
    ids = torch.tensor([[3, 9, 27, 11]])
    names = sorted(repositories)
    whole = {name: TAIAForCausalLM.from_pretrained(folder)(ids).logits for name, (_, folder) in repositories.items()}
    others = sorted(path for _, folder in repositories.values() for path in folder.rglob("*") if path.is_file())
    faults: list[Fault] = []
    with tempfile.TemporaryDirectory() as scratch, _quiet(), _bases_kept():
        for number in range(count):
            draw = random.Random(f"{seed} {number}")
            name = names[number % len(names)]
            base, original = repositories[name]
            folder = shutil.copytree(original, Path(scratch) / "damaged")
            said = f"{name} {damage(folder, others, draw)}"
            for call, done in _calls(folder, base, Path(scratch) / "made", draw):
                what = _outcome(done, whole[name] if call == "from_pretrained" else None, ids)
                if what:
                    faults.append(Fault(number, said, call, what))
            for made in (folder, Path(scratch) / "made"):
                shutil.rmtree(made, ignore_errors=True)
    return faults


def _calls(folder: Path, base: Path, out: Path, draw: random.Random) -> list[tuple[str, Callable[[], Any]]]:
    """Lists what is called on a damaged repository: the load of it, and one further call by turns."""
    inside = next((path for path in sorted(folder.iterdir()) if path.is_dir() and path.suffix == ""), folder)
    further: list[tuple[str, Callable[[], Any]]] = [
        ("info", lambda: repository_info(str(folder))),
        ("info of the update", lambda: repository_info(str(inside))),
        ("from_adapter", lambda: TAIAForCausalLM.from_adapter(base, inside)),
        ("create", lambda: create_repository(str(base), str(inside), out=out)),
    ]
    load: tuple[str, Callable[[], Any]] = ("from_pretrained", lambda: TAIAForCausalLM.from_pretrained(folder))
    return [load, *([draw.choice(further)] if draw.random() < 0.25 else [])]


def _outcome(call: Callable[[], Any], expected: torch.Tensor | None, ids: torch.Tensor) -> str | None:
    """Returns what is wrong with how a call ends; None where it is right."""
    try:
        with _limited():
            made = call()
            if expected is None:
                return None
            return None if torch.equal(made(ids).logits, expected) else "other logits in silence"
    except TAIAError as error:
        return None if error.message and error.hint else f"no hint: {error.message}"
    except _Hang:
        return f"took more than {SECONDS} s"
    except Exception as error:  # noqa: BLE001 (what must not happen, whatever it is)
        return f"{type(error).__name__}: {str(error)[:300]}"


class _Hang(BaseException):
    pass


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise _Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def _bases_kept() -> Iterator[None]:
    """Copies a base that was loaded once: nothing here damages one, and reading it takes most of a load's time."""
    original, kept = loading._base_model, dict[str, Any]()

    def base_model(found: Any, options: Any) -> Any:
        if options.skeleton:
            return original(found, options)
        if found.base.name not in kept:
            kept[found.base.name] = original(found, options)
        return copy.deepcopy(kept[found.base.name])

    loading._base_model = base_model
    try:
        yield
    finally:
        loading._base_model = original


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def make_repositories(pico: Any, folder: Path) -> dict[str, tuple[Path, Path]]:
    """Makes a small repository of each kind; returns name to base model and repository."""
    from taia_hub.repository.creating import create_from_finetuned
    from taia_hub.updates.molora.config import MoLoraSettings
    from taia_hub.updates.molora.update import add_molora, save_molora

    base = pico.base("llama")
    options = {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {r"layers\.0\..*down_proj": 3}}
    adapter = pico.adapter("llama", pico.lora("llama", **options), label="damaged-patterns")
    torch.manual_seed(0)
    mixture = add_molora(pico.plain("llama"), MoLoraSettings(rank=4, alpha=6))
    tuned = pico.plain("llama")
    with torch.no_grad():
        for name, parameter in [*mixture.named_parameters(), *tuned.named_parameters()]:
            if "lora" in name or ("proj" in name and not name.endswith("base_layer.weight")):
                parameter.add_(torch.randn_like(parameter) * 0.1)
    save_molora(mixture, folder / "mixture")
    tuned.save_pretrained(folder / "tuned")
    create_repository(str(base), str(adapter), out=folder / "peft")
    create_repository(str(base), str(folder / "mixture"), out=folder / "molora")
    create_from_finetuned(str(base), str(folder / "tuned"), out=folder / "dense")
    return {name: (base, folder / name) for name in ("peft", "molora", "dense")}


if __name__ == "__main__":
    from tests.conftest import Pico

    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        (root / "pico").mkdir()
        asked = [int(word) for word in sys.argv[1:]] or [500]
        found = try_damages(make_repositories(Pico(root / "pico"), root), asked[0], *asked[1:2])
    for one in found:
        sys.stdout.write(f"{one.number} {one.call}: {one.damage}\n    {one.what}\n")
    sys.stdout.write(f"{len(found)} faults in {asked[0]} damages\n")
