"""From a recipe to a TAIA repository: data, training with TRL's SFTTrainer over PEFT and accelerate, and the record.

A `TrainingRecipe` comes in; a repository in a folder or on the Hub goes out, with `Trained` to say what was done, or
the `Plan` of a dry run. `recipe.py` imports values only; everything else is imported when it is asked for, and may
import every room below this one.
"""

from typing import TYPE_CHECKING

from taia_hub.common.imports import later
from taia_hub.training.recipe import TrainingRecipe

if TYPE_CHECKING:
    from taia_hub.training.planning import Plan
    from taia_hub.training.running import plan_training, train
    from taia_hub.training.trained import Trained

__all__ = ["Plan", "Trained", "TrainingRecipe", "plan_training", "train"]
__getattr__ = later(
    __name__, {"Plan": "planning", "Trained": "trained", "plan_training": "running", "train": "running"}
)
