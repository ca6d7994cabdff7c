"""`taia reproduce`: a recipe of the paper is trained and evaluated, and the paper's table stands beside ours."""

from taia_hub.reproducing.recipe import Recipe, load_recipe
from taia_hub.reproducing.running import Reproduction, reproduce
from taia_hub.reproducing.table import ReproductionTable

__all__ = ["Recipe", "Reproduction", "ReproductionTable", "load_recipe", "reproduce"]
