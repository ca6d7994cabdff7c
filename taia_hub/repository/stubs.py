"""The two files of code in a repository, which import this package for `trust_remote_code=True` and do nothing else."""

from __future__ import annotations

import ast
from pathlib import Path

from taia_hub.common.installing import install_command
from taia_hub.errors import RepositoryError

STUBS = {"configuration_taia.py": ("TAIAConfig",), "modeling_taia.py": ("TAIAForCausalLM", "TAIAModel")}
# within `try`: what is missing outside of it, transformers would say is a package of an index
_STUB = '''"""Loads the classes of taia-hub for `trust_remote_code=True`."""

try:
    from taia_hub import {classes}  # noqa: F401
except ImportError as error:
    raise ImportError({needs!r}) from error
'''


def write_stubs(folder: Path) -> None:
    """Writes both files."""
    for name, classes in STUBS.items():
        needs = f"This model is loaded by taia-hub. {install_command()}"
        (folder / name).write_text(_STUB.format(classes=", ".join(classes), needs=needs))


def check_stubs(folder: Path) -> None:
    """Refuses a repository whose files of these names, as far as they lie here, do anything else.

    Raises:
        RepositoryError: If one does.
    """
    for name in STUBS:
        path = folder / name
        if path.is_file() and not _is_stub(path.read_bytes()):
            raise RepositoryError(
                f"'{name}' in '{folder}' is not taia-hub's: it holds code of somebody's own.",
                "Do not load it with `trust_remote_code=True`. To load the model without that code, download the "
                f"repository and take {name} away; `save_pretrained` writes the right one.",
            )


def _is_stub(source: bytes) -> bool:
    try:
        body = ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return all(_is_import(one) or _is_text(one) or (isinstance(one, ast.Try) and _only_imports(one)) for one in body)


def _only_imports(one: ast.Try) -> bool:
    return not (one.orelse or one.finalbody) and all(map(_is_import, one.body)) and all(map(_only_raises, one.handlers))


def _only_raises(handler: ast.ExceptHandler) -> bool:
    """Tells whether a handler does nothing but raise; whatever stands in it, its condition too, would be run."""
    return _is_name(handler.type) and all(
        isinstance(one, ast.Raise) and _is_message(one.exc) and _is_name(one.cause) for one in handler.body
    )


def _is_import(one: ast.stmt) -> bool:
    if not isinstance(one, ast.ImportFrom) or one.level or one.module != "taia_hub":
        return False
    return all(alias.asname is None for alias in one.names)  # `ImportError` stays what it is


def _is_text(one: ast.stmt) -> bool:
    return isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant)


def _is_name(one: ast.expr | None) -> bool:
    return one is None or isinstance(one, ast.Name)


def _is_message(raised: ast.expr | None) -> bool:
    if not isinstance(raised, ast.Call) or raised.keywords:
        return False
    named = isinstance(raised.func, ast.Name) and raised.func.id == "ImportError"
    return named and all(isinstance(one, ast.Constant) for one in raised.args)
