"""The paper's rows as recipes: `NAME.yaml` says how to train, `paper/NAME.yaml` how the row is evaluated.

`NAME.yaml` holds fields of `taia_hub.training.TrainingRecipe` and nothing else, so that `taia train` takes it too.
`paper/NAME.yaml` holds what `taia reproduce` needs beside it: `trained_on` (the paper's data, in words), `bring` (what
the user must bring), `sweep` (label of a run to the fields in which it differs), `evaluation` (tasks and modes),
`remarks` and `paper` (the paper's numbers, their source and how exactly they are known).
"""

from __future__ import annotations

from pathlib import Path

PAPER = "paper"

_FOLDER = Path(__file__).parent


def recipe_names() -> tuple[str, ...]:
    """Returns the names of the shipped recipes.

    Returns:
        Names in alphabetical order.

    Example:
        >>> "lora" in recipe_names()
        True
    """
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.yaml")))


def recipe_path(name: str) -> Path:
    """Returns where the training of a shipped recipe is described.

    Args:
        name: One of `recipe_names()`.

    Returns:
        A YAML file, which `TrainingRecipe.from_yaml` reads.
    """
    return _FOLDER / f"{name}.yaml"


def recipe_texts(name: str) -> tuple[str, str]:
    """Returns what ships of a recipe.

    Args:
        name: One of `recipe_names()`.

    Returns:
        The YAML of its training, and that of its place in the paper.

    Raises:
        FileNotFoundError: If there is no such recipe.
    """
    paper = _FOLDER / PAPER / f"{name}.yaml"
    return recipe_path(name).read_text(encoding="utf-8"), paper.read_text(encoding="utf-8")
