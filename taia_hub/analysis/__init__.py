"""Examination of an update: norms and ranks from its files, hidden states by mode, and figures of both.

The name of a repository or adapter comes in, an `Analysis` goes out, whose file format stands in `results`. It may
import the model and what lies below.
"""

from taia_hub.analysis._style import Figure
from taia_hub.analysis.figures import draw_figures, draw_residual_rank, draw_scores, draw_similarity, draw_update_norms
from taia_hub.analysis.hidden import examine_texts, measure_states
from taia_hub.analysis.measuring import analyze_update
from taia_hub.analysis.tuning_figures import draw_tuning, draw_tuning_front, draw_tuning_weights
from taia_hub.results.analysis import ANALYSIS_FILE, Analysis, Curve, HiddenStates, Subject, load_analysis
from taia_hub.results.norms import ModuleUpdate, UpdateAnalysis, UpdatePart

__all__ = [
    "ANALYSIS_FILE",
    "Analysis",
    "Curve",
    "Figure",
    "HiddenStates",
    "ModuleUpdate",
    "Subject",
    "UpdateAnalysis",
    "UpdatePart",
    "analyze_update",
    "draw_figures",
    "draw_residual_rank",
    "draw_scores",
    "draw_similarity",
    "draw_tuning",
    "draw_tuning_front",
    "draw_tuning_weights",
    "draw_update_norms",
    "examine_texts",
    "load_analysis",
    "measure_states",
]
