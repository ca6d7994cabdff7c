"""Which part of an update to keep: searched on a target, held against what is lost of everything else.

A loaded model or its name, items to fit and texts to retain come in, `results.Tuned` goes out: candidates with their
target loss and retention on items that no search has seen, the front, and which setting to use. It may import
`training` and what lies below it; torch is imported where something is searched.
"""

from typing import TYPE_CHECKING

from taia_hub.common.imports import later

if TYPE_CHECKING:
    from taia_hub.tuning.running import tune

__all__ = ["tune"]
__getattr__ = later(__name__, {"tune": "running"})
