"""What lies beside the package in a checkout and inside it in a wheel: one resolver that finds either place."""

from __future__ import annotations

from pathlib import Path


def shipped(name: str, package: Path = Path(__file__).parents[1]) -> Path:
    """Returns a folder that ships with the package: `taia_hub/_NAME` in a wheel, `NAME` beside it in a checkout."""
    packaged = package / f"_{name}"
    return packaged if packaged.is_dir() else package.parent / name
