"""What a mode keeps of the base: losses and divergence from it on texts, by mode, on one loaded model.

A loaded model and texts, or tokens with labels, come in; `Losses` go out. It may import `compare` and what lies below.
"""

from taia_hub.retaining.losses import Losses
from taia_hub.retaining.measuring import measure

__all__ = ["Losses", "measure"]
