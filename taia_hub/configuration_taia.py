"""`TAIAConfig`: what `config.json` of a TAIA repository says, as a configuration of transformers."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any, ClassVar

from transformers import PreTrainedConfig

from taia_hub import hub
from taia_hub.common.atomic import write_atomically
from taia_hub.errors import ConfigError, RepositoryError, TAIAError
from taia_hub.hub.config import MODEL_TYPE, REPAIR, Fields, check_key, default_update, published_form
from taia_hub.hub.files import MANIFEST
from taia_hub.hub.manifest import renewed_manifest

_OF_THE_BASE = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "max_position_embeddings"),
    *("num_attention_heads", "num_key_value_heads", "head_dim", "sliding_window", "tie_word_embeddings"),
    *("bos_token_id", "eos_token_id", "pad_token_id"),
)
# ^ what memory estimates, servers and harnesses ask any model's configuration for


class TAIAConfig(Fields, PreTrainedConfig):
    """Configuration of a TAIA repository: a base model, an update of all its modules, and which part acts.

    Sizes and token ids (`vocab_size`, `hidden_size`, `num_hidden_layers`, `eos_token_id` and the like) are answered
    from the base model's text configuration at the recorded commit, which is fetched when one is first asked for.

    Args:
        base_model_name_or_path: Hub id or folder of the base model.
        base_model_revision: Commit sha of the base model, or None for a folder.
        inference_modules: The published default: a mode name, roles joined by `+`, or a mapping or list of pairs of
            selectors and weights.
        update: Where the update is: `kind` ("peft", "molora" or "dense"), `path` of its folder, and, when it lies in
            another repository, `repo` and `revision` (a commit sha).

    Raises:
        ConfigError: If a value has the wrong type or range.
        SettingError: If `inference_modules` is no setting.

    Example:
        >>> config = TAIAConfig(base_model_name_or_path="org/base", inference_modules={"attention": 1, "ffn": 0.5})
        >>> config.inference_modules
        [['attention', 1.0], ['ffn', 0.5]]
    """

    model_type: ClassVar[str] = MODEL_TYPE

    base_model_name_or_path: str | None = None
    base_model_revision: str | None = None
    inference_modules: Any = "attention"
    update: Any = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Validates and normalises the fields."""
        super().__post_init__(**kwargs)
        if self.update is None:
            self.update = default_update()
        self._check()

    def __setattr__(self, key: str, value: Any) -> None:
        """Keeps the published setting in the form that JSON does not reorder, and refuses what is no setting."""
        check_key(key)
        super().__setattr__(key, published_form(value) if key == "inference_modules" else value)

    def __getattr__(self, name: str) -> Any:
        """Answers sizes and token ids of the base model; nothing of it is stored here or written to config.json."""
        if name not in _OF_THE_BASE:
            raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'", name=name, obj=self)
        values = self.__dict__
        base, revision = values.get("base_model_name_or_path"), values.get("base_model_revision")
        try:
            if base is None or (revision is None and values.get("_commit_hash")):
                raise RepositoryError("The configuration names no base model on the Hub.")
            return getattr(_text_config(base, revision), name)
        except (TAIAError, OSError, ValueError) as error:
            raise AttributeError(
                f"'{name}' stands in the configuration of the base model '{base}', which cannot be read: {error}",
                name=name,
                obj=self,
            ) from error

    def validate(self) -> None:
        """Checks what transformers does, without architecture and tokens: those are the base's, which is not asked."""
        self.validate_output_attentions()

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Builds the configuration; a loading keyword `inference_modules` is passed on, not published.

        Args:
            config_dict: The contents of `config.json`.
            **kwargs: Keywords of `from_pretrained`.

        Returns:
            The configuration, with the unused keywords when `return_unused_kwargs` is set.

        Raises:
            ConfigError: If a value has the wrong type or range.
            SettingError: If `inference_modules` is no setting.
        """
        requested = {}
        if kwargs.get("return_unused_kwargs") and "inference_modules" in kwargs:
            requested["inference_modules"] = kwargs.pop("inference_modules")
        try:
            made: Any = super().from_dict(config_dict, **kwargs)
        except TAIAError:
            raise
        except (AttributeError, TypeError, ValueError) as error:
            raise ConfigError(f"config.json holds a value that transformers cannot use: {error}.", REPAIR) from error
        return (made[0], {**made[1], **requested}) if kwargs.get("return_unused_kwargs") else made

    def save_pretrained(self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any) -> None:
        """Saves config.json; a manifest that lies beside it renews the setting that is published.

        Args:
            save_directory: The folder.
            push_to_hub: Whether the file is uploaded too.
            **kwargs: Keywords of `push_to_hub`.
        """
        super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)
        folder = Path(save_directory)
        if renewed := renewed_manifest(folder, folder / self.place.path):
            write_atomically(folder / MANIFEST, renewed)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Does nothing: a repository carries stubs that import this package, never copies of its modules.

        Args:
            auto_class: The Auto class, as transformers passes it after a load with `trust_remote_code=True`.
        """


@functools.lru_cache(maxsize=8)
def _text_config(name: str, revision: str | None) -> PreTrainedConfig:
    """Reads the text part of a base model's configuration; its own code is not run."""
    from transformers import AutoConfig

    found = hub.resolve_base(name, revision, hub.HubAccess())
    config = AutoConfig.from_pretrained(str(found.folder), trust_remote_code=False)
    if isinstance(config, TAIAConfig):
        raise RepositoryError(f"The base model '{name}' is itself a TAIA repository.")
    text: PreTrainedConfig = config.get_text_config()
    return text
