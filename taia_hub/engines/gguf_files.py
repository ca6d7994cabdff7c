"""GGUF files by the `gguf` package: written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from taia_hub.common.atomic import put_in_place, scratch_file
from taia_hub.common.imports import import_or_raise
from taia_hub.hub import disk_errors


def gguf_package() -> Any:
    """Imports the `gguf` package.

    Raises:
        MissingDependencyError: If it is not installed.
    """
    return import_or_raise("gguf", extra="serve", feature="GGUF")


def tensor_names(architecture: str, blocks: int) -> Any:
    """Returns the package's map from names of a checkpoint's modules and tensors to those in a GGUF file."""
    gguf = gguf_package()
    kind = next(kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    return gguf.get_tensor_name_map(kind, blocks)


@contextlib.contextmanager
def new_gguf(out: Path, architecture: str) -> Iterator[Any]:
    """Gives a `gguf.GGUFWriter` whose file takes its name, and the place of what has it, when the block succeeds.

    Raises:
        RepositoryError: If the disk is full or cannot be written; nothing is left of the new file.
    """
    gguf = gguf_package()
    with disk_errors(out.parent):
        out.parent.mkdir(parents=True, exist_ok=True)
        scratch = scratch_file(out.parent, f".{out.name}-")
        writer = gguf.GGUFWriter(scratch, architecture)
        try:
            yield writer
            writer.close()
            put_in_place(scratch, out)
        except OSError as error:
            if error.errno is None:  # numpy's, which wrote less than it was given
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
            raise
        finally:
            with contextlib.suppress(OSError):  # on a full disk closing writes too
                writer.close()
            scratch.unlink(missing_ok=True)


def begin_tensors(writer: Any) -> None:
    """Writes all that comes before the tensors' data."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
