"""What was measured of a model: the files beside it, paired statistics, and the summary that tables and cards show.

Scores and norms come in, files, tables and sentences go out. It may import `switch` and what lies below it; no torch.
"""

from taia_hub.results.analysis_text import conclusion
from taia_hub.results.format import (
    RESULTS_FILE,
    DatasetSource,
    Group,
    ModeScores,
    Results,
    TaskResults,
)
from taia_hub.results.identity import ModelIdentity, config_sha256
from taia_hub.results.statistics import Interval, Score
from taia_hub.results.summary import Row, Summary, summarise
from taia_hub.results.text import format_difference, format_value, to_text
from taia_hub.results.tuning import TUNING_FILE, Candidate, Choice, Tuned, TuningData, WeightGroup
from taia_hub.results.tuning_text import tuning_text

__all__ = [
    "RESULTS_FILE",
    "TUNING_FILE",
    "Candidate",
    "Choice",
    "DatasetSource",
    "Group",
    "Interval",
    "ModeScores",
    "ModelIdentity",
    "Results",
    "Row",
    "Score",
    "Summary",
    "TaskResults",
    "Tuned",
    "TuningData",
    "WeightGroup",
    "conclusion",
    "config_sha256",
    "format_difference",
    "format_value",
    "summarise",
    "to_text",
    "tuning_text",
]
