"""Cards: values in, text out; a person's edits kept; every fact checked.

`data.CardData` comes in, the text of a card or findings about one go out. It may import `results`, `hub` and what lies
below them; no network, no inference, no torch.
"""

from taia_hub.cards.benchmarks import FOLDER as EVAL_RESULTS
from taia_hub.cards.benchmarks import eval_results_files, is_eval_results_file, same_scores
from taia_hub.cards.check import CardFacts, Finding, check_card
from taia_hub.cards.data import (
    CardData,
    DatasetFacts,
    Figure,
    MergedCardData,
    RolePart,
    SpaceCardData,
    Training,
)
from taia_hub.cards.edits import Merged, merge_cards, with_modes
from taia_hub.cards.linking import space_of, try_it, with_space
from taia_hub.cards.rendering import ADAPTER, environment_for, marked_card, render_card
from taia_hub.cards.sections import MARK, YOURS, is_generated, title_of
from taia_hub.cards.training import training_from_json

__all__ = [
    "ADAPTER",
    "EVAL_RESULTS",
    "MARK",
    "YOURS",
    "CardData",
    "CardFacts",
    "DatasetFacts",
    "Figure",
    "Finding",
    "Merged",
    "MergedCardData",
    "RolePart",
    "SpaceCardData",
    "Training",
    "check_card",
    "environment_for",
    "eval_results_files",
    "is_eval_results_file",
    "is_generated",
    "marked_card",
    "merge_cards",
    "render_card",
    "same_scores",
    "space_of",
    "title_of",
    "training_from_json",
    "try_it",
    "with_modes",
    "with_space",
]
