"""Imports that need not or cannot happen at once: optional dependencies, and what to do once a module is there."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from taia_hub.common.installing import extra_command
from taia_hub.errors import MissingDependencyError


def import_or_raise(module: str, extra: str, feature: str) -> ModuleType:
    """Imports an optional dependency, or says how to install it.

    Args:
        module: The module to import, such as `"starlette"`.
        extra: The extra of taia-hub that brings it, such as `"demo"`.
        feature: What needs it, as the subject of a sentence, such as `"LocalHub"`.

    Returns:
        The imported module.

    Raises:
        MissingDependencyError: When `module`, or a module that it needs, is not installed.

    Example:
        >>> import_or_raise("json", "demo", "LocalHub").dumps([1])
        '[1]'
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as e:
        raise _missing(e.name, extra, feature) from e


def check_importable(*modules: str, extra: str, feature: str) -> None:
    """Raises what `import_or_raise` does for the first module that is not installed, and imports none.

    Raises:
        MissingDependencyError: When one is not installed.

    Example:
        >>> check_importable("json", "csv", extra="demo", feature="The demo")
    """
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise _missing(module, extra, feature)


def _missing(module: str | None, extra: str, feature: str) -> MissingDependencyError:
    return MissingDependencyError(
        f"{feature} needs the module '{module}', which is not installed.",
        hint=f"Install it with: {extra_command(extra)}",
    )


def later(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Makes the `__getattr__` of a package that imports each name's module, in `homes`, when the name is asked for."""

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        return getattr(importlib.import_module(f"{package}.{homes[name]}"), name)

    return find


def when_imported(module: str, then: Callable[[], object]) -> None:
    """Calls a function as soon as a module is imported: at once, where it is already.

    So a library is told of this package without being imported for that alone.

    Args:
        module: The full name of the module.
        then: What is called once, after the module has run; what it raises, the import raises.

    Example:
        >>> when_imported("json", lambda: print("here"))
        here
    """
    if module in sys.modules:
        then()
    else:
        sys.meta_path.insert(0, _Awaiting(module, then))


class _Awaiting:
    """Finds the awaited module as the other finders do, and has it followed by a call."""

    def __init__(self, awaited: str, then: Callable[[], object]) -> None:
        self.awaited, self.then = awaited, then

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        if fullname != self.awaited:
            return None
        # two may wait for one module, also of a package that was imported anew: neither asks the other
        finders = [finder for finder in sys.meta_path if getattr(finder, "awaited", None) != fullname]
        spec = next(filter(None, (finder.find_spec(fullname, path, target) for finder in finders)), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                for finder in [one for one in sys.meta_path if getattr(one, "awaited", None) == fullname]:
                    sys.meta_path.remove(finder)
                    finder.then()  # type: ignore[attr-defined]

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
