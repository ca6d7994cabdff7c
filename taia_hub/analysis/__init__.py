"""Examination of an update: norms and ranks from its files, hidden states by mode, and figures of both."""

from taia_hub.analysis._style import Figure
from taia_hub.analysis.figures import draw_figures, draw_residual_rank, draw_scores, draw_similarity, draw_update_norms
from taia_hub.analysis.hidden import examine_texts, hidden_state_similarity, residual_rank
from taia_hub.analysis.measuring import analyze_update
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
    "draw_update_norms",
    "examine_texts",
    "hidden_state_similarity",
    "load_analysis",
    "residual_rank",
]
