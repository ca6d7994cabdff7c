"""An update's files on the structure of its base model, without the base's weights; merging one module at a time."""

from taia_hub.offline.attaching import Attached, Entry, attach_offline, injected, listed, skeleton
from taia_hub.offline.finding import UpdateFiles, find_update
from taia_hub.offline.lean import LeanLora, LoraPair, is_state_space, linear_shape, tensor_shapes
from taia_hub.offline.live import files_of
from taia_hub.offline.merging import check_mergeable, holding, merged_weights
from taia_hub.offline.opening import OfflineUpdate, base_checkpoint, check_not_quantised, open_files, open_update
from taia_hub.updates.methods import MERGEABLE

__all__ = [
    "MERGEABLE",
    "Attached",
    "Entry",
    "LeanLora",
    "LoraPair",
    "OfflineUpdate",
    "UpdateFiles",
    "attach_offline",
    "base_checkpoint",
    "check_mergeable",
    "check_not_quantised",
    "files_of",
    "find_update",
    "holding",
    "injected",
    "is_state_space",
    "linear_shape",
    "listed",
    "merged_weights",
    "open_files",
    "open_update",
    "skeleton",
    "tensor_shapes",
]
