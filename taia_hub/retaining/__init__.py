"""What a mode keeps of the base: losses and divergence from it on texts, by mode, on one loaded model.

`measure` takes a loaded model, tokens with labels and settings, and gives `Losses`, a value a setting; `task_results`
makes a task of a results file of them. The room is not called `retention`, because `taia_hub.retention` is a function.
It may import `compare` and what lies below.
"""

from taia_hub.retaining.encoding import encode_texts
from taia_hub.retaining.keeping import Retention, retention
from taia_hub.retaining.losses import Losses
from taia_hub.retaining.measuring import measure
from taia_hub.retaining.tasks import task_results
from taia_hub.retaining.texts import Texts, read_texts

__all__ = ["Losses", "Retention", "Texts", "encode_texts", "measure", "read_texts", "retention", "task_results"]
