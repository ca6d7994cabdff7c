"""`taia reproduce`: a recipe of the paper is trained and evaluated, and the paper's table stands beside ours.

A recipe's name and a small base come in, a `Reproduction` with its table goes out. It may import `training`,
`evaluation` and what lies below them.
"""

from typing import TYPE_CHECKING

from taia_hub.common.imports import later
from taia_hub.reproducing.recipe import Recipe, load_recipe

if TYPE_CHECKING:
    from taia_hub.reproducing.running import Reproduction, reproduce
    from taia_hub.reproducing.table import ReproductionTable

__all__ = ["Recipe", "Reproduction", "ReproductionTable", "load_recipe", "reproduce"]
__getattr__ = later(__name__, {"Reproduction": "running", "ReproductionTable": "table", "reproduce": "running"})
