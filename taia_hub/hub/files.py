"""The files of a repository: whole weights, strict JSON, and writing that leaves no halves."""

from __future__ import annotations

import contextlib
import errno
import filecmp
import glob
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from huggingface_hub import constants
from safetensors import SafetensorError, safe_open

from taia_hub.common.parsing import parse_json
from taia_hub.common.resuming import digest, known_sha256, scratch_beside
from taia_hub.errors import ConfigError, RepositoryError
from taia_hub.hub._errors import disk_errors
from taia_hub.hub._seen import seen_file, seen_folder
from taia_hub.hub.access import CONFIG, GENERATION, HubAccess, Source, fetch
from taia_hub.hub.layout import MODEL_INDEX, PEFT, UpdateKind

MANIFEST = "taia_manifest.json"
ADAPTER_CONFIG = PEFT.config
ADAPTER_WEIGHTS = PEFT.weights
PICKLED_WEIGHTS = "adapter_model.bin"
TOKENIZER_CONFIG = "tokenizer_config.json"
"""Tells a tokenizer that transformers saved."""
TOKENIZER_FILES = (
    "*token*",
    "*vocab*",
    "merges.txt",
    "*.model",
    "chat_template*",
    "additional_chat_templates/*",
    "tekken.json",
    "bpe.codes",
)
"""Globs on the files that a tokenizer may have."""
_LARGEST_JSON = 1 << 28
MODEL_FILES = (
    CONFIG,
    GENERATION,
    "model.safetensors",
    "model-*-of-*.safetensors",
    MODEL_INDEX,
)
"""Globs on the files of a whole model that are read."""


_PARTS = {
    "weights": ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "pytorch_model*.bin.index.json"),
    "configuration": (CONFIG,),
    "generation settings": (GENERATION,),
    "chat template": ("chat_template*", "additional_chat_templates/*"),
    "tokenizer": tuple(pattern for pattern in TOKENIZER_FILES if "chat_template" not in pattern),
    "code": ("*.py",),
}
"""What a model in a folder is made of: globs on the files of each part, of which the first that fits counts."""
MODEL_PARTS = ("weights", "configuration", "code")
"""What its numbers depend on."""
ANSWER_PARTS = ("tokenizer", "chat template", "generation settings")
"""What its answers depend on besides, and what goes along where another model is made of it."""


def fetch_model(
    name: str,
    patterns: Sequence[str] = (),
    *,
    revision: str | None = None,
    access: HubAccess | None = None,
    what: str = "model",
    local: bool = True,
) -> Source:
    """Brings a whole model to this disk, with the shards that its index names, whatever they are called.

    `patterns` are globs on further files; everything else is as of `fetch`.

    Raises:
        RepositoryError: As of `fetch`.
        ConfigError: If the index is malformed.
    """
    found = fetch(name, (*MODEL_FILES, *patterns), revision=revision, access=access, what=what, local=local)
    index = found.folder / MODEL_INDEX
    if found.revision and not index.is_file() and not (found.folder / "model.safetensors").is_file():
        # what names the reason where there are no safetensors
        fetch(name, ["pytorch_model.bin.index.json"], revision=found.revision, access=access, what=what, local=False)
    if found.revision is None or not index.is_file() or (found.folder / "model.safetensors").is_file():
        return found
    if odd := [shard for shard in index_shards(index) if not (found.folder / shard).is_file()]:
        names = [glob.escape(shard) for shard in odd]
        fetch(name, names, revision=found.revision, access=access, what=what, local=False)
    return found


def adapter_weights(folder: Path) -> Path:
    """Finds an adapter's safetensors file and checks that it is whole.

    Raises:
        RepositoryError: If a file is missing, pickled, truncated or damaged.
    """
    if not (folder / ADAPTER_CONFIG).is_file():
        raise RepositoryError(
            f"'{folder}' has no {ADAPTER_CONFIG}.", "Give the folder or repository that PEFT saved the adapter to."
        )
    weights = folder / ADAPTER_WEIGHTS
    if not weights.is_file():
        if (folder / PICKLED_WEIGHTS).is_file():
            raise RepositoryError(
                f"'{folder}' holds pickled weights ({PICKLED_WEIGHTS}), which can run code when they are loaded; "
                "only safetensors are read.",
                "Convert them with `taia create BASE ADAPTER --convert-pickle --out DIR`.",
            )
        if (folder / f"{ADAPTER_WEIGHTS}.index.json").is_file():
            raise RepositoryError(
                f"'{folder}' has the adapter's weights in several files ({ADAPTER_WEIGHTS}.index.json), and PEFT reads "
                f"{ADAPTER_WEIGHTS} alone.",
                "Join them: `safetensors.torch.load_file` of each, and `save_file` of all tensors.",
            )
        said, hint = seen_file(weights) or seen_folder(folder) or ("", "")
        if weights.exists() or "adapter of" in said:
            raise RepositoryError(f"'{folder}' has no {ADAPTER_WEIGHTS}: it is {said}.", hint)
        raise RepositoryError(f"'{folder}' has no {ADAPTER_WEIGHTS}.", "Download or save the adapter again.")
    # AdaLoRA gives up whole layers, whose factors then are (0, D) and (D, 0)
    if empty := [name for name, shape in tensor_shapes(weights).items() if shape == (0,)]:
        raise RepositoryError(
            f"'{weights}' holds {len(empty)} empty tensors, first '{empty[0]}': DeepSpeed ZeRO-3 or FSDP saves such a "
            "file where the parameters were not gathered.",
            "Save the adapter again with the parameters gathered (stage3_gather_16bit_weights_on_model_save), or make "
            "it of the checkpoint with DeepSpeed's zero_to_fp32.py.",
        )
    return weights


def update_weights(folder: Path, kind: UpdateKind) -> dict[str, Path]:
    """Finds the weights of an update of any kind in its folder, and checks that the files are whole.

    Returns name in the folder to path, of every file that the manifest names; first the one that names the update.

    Raises:
        RepositoryError: If a file is missing, pickled, truncated or damaged.
        ConfigError: If an index is malformed.
    """
    if kind is PEFT:
        return {kind.weights: adapter_weights(folder)}
    for name in (kind.config, kind.weights):
        if not (folder / name).is_file():
            raise RepositoryError(f"'{folder}' has no {name}.", f"Download or save the {kind.noun} again.")
    files = {kind.weights: folder / kind.weights}
    if not kind.shards:
        tensor_shapes(folder / kind.weights)
        return files
    for name in index_shards(folder / kind.weights):
        if not (folder / name).is_file():
            raise RepositoryError(
                f"'{folder}' has no '{name}', which {kind.weights} names.", f"Download or save the {kind.noun} again."
            )
        tensor_shapes(folder / name)
        files[name] = folder / name
    return files


def index_shards(index: Path) -> tuple[str, ...]:
    """Reads the names of the shards in an index of sharded weights, each once, in order.

    Raises:
        ConfigError: If the index is malformed, or a name leads out of its folder.
    """
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise ConfigError(f"'{index}' maps no tensors to shards.", "Download or write it again.")
    found = tuple(sorted(set(names.values())))
    if bad := [name for name in found if Path(name).name != name or not name.endswith(".safetensors")]:
        raise ConfigError(f"'{index}' names {bad[0]!r}, which is no safetensors file beside it.", "Write it again.")
    return found


def tensor_shapes(weights: Path) -> dict[str, tuple[int, ...]]:
    """Returns name to shape of each tensor of a safetensors file, and checks that it is whole; no tensor is read.

    Raises:
        RepositoryError: If it is truncated or damaged.
    """
    try:
        with safe_open(weights, framework="np") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as error:
        raise damaged(weights, error) from error


def damaged(weights: Path, error: Exception) -> RepositoryError:
    """Says that a weights file cannot be read, and what it is where that can be told; raise it from `error`."""
    said, hint = seen_file(weights) or ("", "Download or save it again.")
    return RepositoryError(
        f"'{weights}' is missing, truncated or no safetensors file: {f'it is {said}' if said else error}.", hint
    )


def convert_pickled_adapter(folder: Path, out: Path) -> None:
    """Writes an adapter with pickled weights anew as safetensors; nothing in the pickle is run.

    Raises:
        RepositoryError: If the pickle holds anything but tensors.
    """
    import torch  # here, because everything else on the Hub goes without it
    from safetensors.torch import save_file

    try:
        tensors = torch.load(folder / PICKLED_WEIGHTS, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's reader fails in every way on a file made to harm
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RepositoryError(
            f"'{folder / PICKLED_WEIGHTS}' is no file of plain tensors: {reason}",
            "Do not load it; ask its author for safetensors.",
        ) from error
    named = isinstance(tensors, dict) and all(isinstance(name, str) for name in tensors)
    if not named or not all(isinstance(value, torch.Tensor) for value in tensors.values()):
        raise RepositoryError(
            f"'{folder / PICKLED_WEIGHTS}' holds more than named tensors.", "Ask its author for safetensors."
        )
    out.mkdir(parents=True, exist_ok=True)
    with disk_errors(out):
        shutil.copyfile(folder / ADAPTER_CONFIG, out / ADAPTER_CONFIG)
        save_file({key: value.contiguous().clone() for key, value in tensors.items()}, out / ADAPTER_WEIGHTS)


def base_print(model: Source) -> list[Any]:
    """Names the content of a whole model, as JSON values: by its commit, or in a folder by what lies there now."""
    return [model.name, model.revision or folder_print(model.folder)]


def folder_print(folder: Path, parts: Collection[str] = (*MODEL_PARTS, *ANSWER_PARTS)) -> dict[str, str]:
    """Names the content of a model in a folder, part by part: a sha256 of each of these parts that is there.

    Files count whole; those that are large are read again only where they changed. What no model is made of (cards,
    results) does not count. Of what is no folder nothing is there.
    """
    store, found = Path(constants.HF_HOME) / "taia-digests", dict[str, list[list[str]]]()
    for path in sorted([*folder.glob("*"), *folder.glob("additional_chat_templates/*")]):
        name = path.relative_to(folder).as_posix()
        part = next((part for part, patterns in _PARTS.items() if any(fnmatch(name, one) for one in patterns)), None)
        if part in parts and path.is_file():
            found.setdefault(str(part), []).append([name, known_sha256(path, store)])
    return {part: digest(found[part]) for part in _PARTS if part in found}


def same_bytes(one: Path, other: Path) -> bool:
    """Tells whether two files hold the same bytes; False when one is missing."""
    return one.is_file() and other.is_file() and filecmp.cmp(one, other, shallow=False)


@contextlib.contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """Gives a scratch folder beside `folder`, whose files are moved into place when the block succeeds.

    The manifest is moved last. When the block fails, `folder` is as it was.

    Raises:
        RepositoryError: If the disk is full or the folder cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise RepositoryError(f"'{folder}' is a file.", "Give a folder.")
    with disk_errors(folder), scratch_beside(folder) as scratch:
        yield scratch
        _move(scratch, folder)


def _move(scratch: Path, folder: Path) -> None:
    """Moves files into place, the manifest last; what they replace is put back when one cannot be moved."""
    files = sorted((path for path in scratch.rglob("*") if path.is_file()), key=lambda path: path.name == MANIFEST)
    replaced = Path(tempfile.mkdtemp(dir=scratch))
    with contextlib.ExitStack() as undo:
        if not folder.exists():
            undo.callback(shutil.rmtree, folder, ignore_errors=True)
        for number, path in enumerate(files):
            target = folder / path.relative_to(scratch)
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.exists():
                kept = replaced / str(number)
                os.replace(target, kept)
                undo.callback(os.replace, kept, target)
            os.replace(path, target)
            undo.callback(target.unlink)
        undo.pop_all()


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object, which may be anybody's: it is neither deep nor endless.

    Raises:
        ConfigError: If it is no JSON object.
        RepositoryError: If it is missing, or cannot be read.
    """
    again = "Download or write it again."
    try:
        if not path.is_file():  # a device has no end, and a pipe waits
            raise FileNotFoundError(errno.ENOENT, "there is no such file")
        if (size := path.stat().st_size) > _LARGEST_JSON:
            raise ConfigError(f"'{path}' has {size} bytes; JSON up to {_LARGEST_JSON} is read.", again)
        value = parse_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        seen = seen_file(path)
        said = f"is {seen[0]}; a JSON file is expected" if seen else f"cannot be read: {error.strerror or error}"
        raise RepositoryError(f"'{path}' {said}.", seen[1] if seen else again) from error
    except ValueError as error:
        if seen := seen_file(path):
            raise ConfigError(f"'{path}' is no JSON: it is {seen[0]}.", seen[1]) from error
        raise ConfigError(f"'{path}' is no JSON: {error}.", again) from error
    if not isinstance(value, dict):
        raise ConfigError(f"'{path}' holds {type(value).__name__}; a JSON object is expected.", "Write it again.")
    return value
