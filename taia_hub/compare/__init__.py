"""One prompt, an answer by each mode, side by side: in Python, as a stream, and as Markdown, JSON and HTML.

A loaded model, its tokenizer and a prompt come in, a `Comparison` goes out. It may import the model and what
lies below.
"""

from taia_hub.compare.comparison import ComparedAnswer, Comparison, Parting
from taia_hub.compare.streaming import DEFAULT_MODES, compare, stream_compare
from taia_hub.compare.words import Part, word_diff

__all__ = [
    "DEFAULT_MODES",
    "ComparedAnswer",
    "Comparison",
    "Part",
    "Parting",
    "compare",
    "stream_compare",
    "word_diff",
]
