"""Optional dependencies: one way to import them, one error when they are missing."""

from __future__ import annotations

import importlib
from types import ModuleType

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
        raise MissingDependencyError(
            f"{feature} needs the module '{e.name}', which is not installed.",
            hint=f'Install it with: pip install "taia-hub[{extra}]"',
        ) from e
