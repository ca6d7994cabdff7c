"""The model behind the page: loaded once, shared by all requests, never changed by one."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from taia_hub.common.devices import choose_device
from taia_hub.modeling_taia import TAIAForCausalLM
from taia_hub.page.devices import choose_dtype
from taia_hub.repository.tokenizer import load_tokenizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode with its tokenizer; name and revision are as they were asked for."""

    name: str
    revision: str | None
    model: Any
    tokenizer: Any


class Models:
    """Loads models and keeps the latest one; a request that runs on an earlier one keeps that as long as it lasts.

    Args:
        token: Access token; False for none, not even the stored one.
        dtype: Name of the base models' dtype, or None to choose by device.
        device: Where models go, or None to choose: on ZeroGPU the promised GPU.
        trust_remote_code: Whether a base model's own code may run.
        on_load: Called with every model that was loaded.
    """

    def __init__(
        self,
        *,
        token: str | bool | None = None,
        dtype: str | None = None,
        device: str | None = None,
        trust_remote_code: bool = False,
        on_load: Callable[[Any], object] | None = None,
    ) -> None:
        self.on_load = on_load
        self.token, self.dtype, self.device, self.trust_remote_code = token, dtype, device, trust_remote_code
        self._lock = threading.Lock()
        self._latest: LoadedModel | None = None

    @property
    def bytes(self) -> int:
        """What the latest model takes of its device's memory; 0 where none is loaded yet."""
        return self._latest.model.get_memory_footprint() if self._latest else 0

    def get(self, name: str, revision: str | None = None) -> LoadedModel:
        """Returns a model, loaded if need be; others wait meanwhile, so that it is loaded once."""
        with self._lock:
            if self._latest is None or (self._latest.name, self._latest.revision) != (name, revision):
                device = choose_device(self.device)
                dtype = self.dtype or choose_dtype(device)
                logger.info("Loading %s on %s in %s.", name, device, dtype)
                model = TAIAForCausalLM.from_pretrained(
                    name,
                    revision=revision,
                    dtype=dtype,
                    device_map=device if device != "cpu" else None,
                    token=self.token,
                    trust_remote_code=self.trust_remote_code,
                ).eval()
                if self.on_load:
                    self.on_load(model)
                tokenizer = load_tokenizer(model, token=self.token, trust_remote_code=self.trust_remote_code)
                self._latest = LoadedModel(name, revision, model, tokenizer)
            return self._latest
