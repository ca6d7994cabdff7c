"""Which model was evaluated, so that results are never taken for another's."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from taia_hub.common.resuming import changed_inputs

_IDLE = {
    *("auto_mapping", "base_model_name_or_path", "base_model_revision"),
    *("inference_mode", "peft_version", "revision", "task_type"),
}
"""Keys of an adapter's configuration that do not change what its weights do."""


@dataclass(frozen=True)
class ModelIdentity:
    """Which model was evaluated.

    Attributes:
        name: Hub id or folder of the TAIA repository, as it was given.
        revision: Commit sha of the repository, or None for a folder.
        base_model: Hub id or folder of the base model.
        base_revision: Commit sha of the base model, or None for a folder.
        adapter_sha256: Hash of the update's weights, or None where the update is not one file.
        dtype: dtype of the base model's weights, as in `"bfloat16"`.
        adapter_config_sha256: Hash of what the update's configuration says about how the weights act
            (`config_sha256`), or None where it is not known.
        base_files: What makes up a base model in a folder to its hash (`hub.folder_print`); None for one of the Hub, or
            where it is not known.
    """

    name: str
    revision: str | None
    base_model: str | None
    base_revision: str | None
    adapter_sha256: str | None
    dtype: str
    adapter_config_sha256: str | None = None
    base_files: Mapping[str, str] | None = None

    def difference(self, other: ModelIdentity) -> str | None:
        """Says in what another model differs, or None where its results may stand beside those of this one.

        A name or revision alone does not count: the same update on the same base is the same model, wherever it lies.

        Args:
            other: The other model.

        Returns:
            A clause such as `"its adapter has the sha256 ab12…, not cd34…"`, or None.
        """
        if self.adapter_sha256 != other.adapter_sha256:
            return f"its adapter has the sha256 {_short(other.adapter_sha256)}, not {_short(self.adapter_sha256)}"
        configs = self.adapter_config_sha256, other.adapter_config_sha256
        if None not in configs and configs[0] != configs[1]:
            return "its adapter_config.json says something else, such as another lora_alpha"
        if self.base_files is not None and other.base_files is not None:  # what lies in a folder counts, not where
            if changed := changed_inputs(self.base_files, other.base_files):
                return f"of its base model '{other.base_model}' {changed}"
        elif self.base_model != other.base_model and None in (self.base_revision, other.base_revision):
            return f"its base model is '{other.base_model}', not '{self.base_model}'"
        if self.base_revision != other.base_revision:
            return f"its base model has the revision {_short(other.base_revision)}, not {_short(self.base_revision)}"
        if self.dtype != other.dtype:
            return f"its base model runs in {other.dtype}, not {self.dtype}"
        return None


def config_sha256(adapter_config: Mapping[str, Any]) -> str:
    """Hashes what an adapter's configuration says about how its weights act, such as `lora_alpha`.

    Args:
        adapter_config: Contents of `adapter_config.json`, or `PeftConfig.to_dict()`.

    Returns:
        sha256 in hexadecimal digits; the same wherever the base model lies and whichever PEFT wrote the file.

    Example:
        >>> config_sha256({"r": 8, "revision": "main"}) == config_sha256({"r": 8, "revision": None})
        True
    """
    acting = {
        key: sorted(map(str, value)) if isinstance(value, (set, list, tuple)) else value
        for key, value in adapter_config.items()
        if key not in _IDLE
    }
    return hashlib.sha256(json.dumps(acting, sort_keys=True, default=str).encode()).hexdigest()


def _short(sha: str | None) -> str:
    return f"{sha[:12]}…" if sha and len(sha) > 12 else str(sha)
