"""With which versions, and on what, something was made."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Any


def installed_versions(*packages: str) -> dict[str, str | None]:
    """Returns the versions of Python and of what every model needs, then of `packages`; None where one is missing.

    Example:
        >>> list(installed_versions("trl"))
        ['python', 'taia-hub', 'torch', 'transformers', 'peft', 'trl']
    """
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in ("taia-hub", "torch", "transformers", "peft", *packages):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def hardware(device: Any, processes: int) -> dict[str, Any]:
    """Says on what `processes` work: `device` is a torch.device, or its name."""
    import torch

    device = torch.device(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {"device": device.type, "name": name, "processes": processes, "threads": torch.get_num_threads()}
