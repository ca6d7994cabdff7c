"""The Hub: files brought to this disk and read strictly, a manifest of weights, and publishing in one commit.

Names and folders come in; `Source` (files here), `Head` (what is there) and commits go out. It imports neither torch
nor transformers.
"""

from taia_hub.common.resuming import sha256
from taia_hub.hub._errors import (
    PaymentError,
    check_space,
    disk_errors,
    foreign_errors,
    hub_errors,
    no_folder,
    reason_of,
)
from taia_hub.hub._names import meant
from taia_hub.hub._seen import seen_file, seen_folder, seen_in, seen_tensors
from taia_hub.hub.access import CONFIG, HubAccess, Source, api, fetch, resolve_base
from taia_hub.hub.collections import collect
from taia_hub.hub.files import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    MANIFEST,
    PICKLED_WEIGHTS,
    TOKENIZER_CONFIG,
    TOKENIZER_FILES,
    adapter_weights,
    base_print,
    convert_pickled_adapter,
    damaged,
    fetch_model,
    index_shards,
    read_json,
    same_bytes,
    tensor_shapes,
    update_weights,
    verify_manifest,
    write_manifest,
    written_whole,
)
from taia_hub.hub.layout import MODEL_INDEX
from taia_hub.hub.publish import CARD, RESUME_INDEX, Commit, Head, full_repo_id, look, publish, published_files
from taia_hub.hub.spaces import SpaceSettings, set_space, space_hardware

__all__ = [
    "ADAPTER_CONFIG",
    "ADAPTER_WEIGHTS",
    "CARD",
    "CONFIG",
    "MANIFEST",
    "MODEL_INDEX",
    "PICKLED_WEIGHTS",
    "RESUME_INDEX",
    "TOKENIZER_CONFIG",
    "TOKENIZER_FILES",
    "Commit",
    "Head",
    "HubAccess",
    "PaymentError",
    "Source",
    "SpaceSettings",
    "adapter_weights",
    "api",
    "base_print",
    "check_space",
    "collect",
    "convert_pickled_adapter",
    "damaged",
    "disk_errors",
    "fetch",
    "fetch_model",
    "foreign_errors",
    "full_repo_id",
    "hub_errors",
    "index_shards",
    "look",
    "meant",
    "no_folder",
    "publish",
    "published_files",
    "read_json",
    "reason_of",
    "resolve_base",
    "same_bytes",
    "seen_file",
    "seen_folder",
    "seen_in",
    "seen_tensors",
    "set_space",
    "sha256",
    "space_hardware",
    "tensor_shapes",
    "update_weights",
    "verify_manifest",
    "write_manifest",
    "written_whole",
]
