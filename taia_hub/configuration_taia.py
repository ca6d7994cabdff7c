"""`TAIAConfig`: what `config.json` of a TAIA repository says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers import PreTrainedConfig

from taia_hub.errors import ConfigError, SettingError, TAIAError
from taia_hub.hub.layout import KINDS, UpdatePlace
from taia_hub.switch.settings import Setting, parse_published, parse_setting

PAPER = "https://arxiv.org/abs/2405.20192"
"""Where TAIA comes from."""

AUTO_MAP = {
    "AutoConfig": "configuration_taia.TAIAConfig",
    "AutoModel": "modeling_taia.TAIAModel",
    "AutoModelForCausalLM": "modeling_taia.TAIAForCausalLM",
}
_SHA = re.compile(r"[0-9a-f]{40}")
_FOLDER = re.compile(r"\w[\w .+-]*(/\w[\w .+-]*)*")
_UPDATE_KEYS = ("kind", "path", "repo", "revision")


class TAIAConfig(PreTrainedConfig):
    """Configuration of a TAIA repository: a base model, an update of all its modules, and which part acts.

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

    model_type: ClassVar[str] = "taia"

    base_model_name_or_path: str | None = None
    base_model_revision: str | None = None
    inference_modules: Any = "attention"
    update: Any = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Validates and normalises the fields."""
        super().__post_init__(**kwargs)
        if self.update is None:
            self.update = {"kind": "peft", "path": "adapter"}
        for name in ("base_model_name_or_path", "base_model_revision"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or not value.strip()):
                raise ConfigError(f"{name} is {value!r}; it must be a non-empty string or absent.", _REPAIR)
        if self.base_model_revision is not None and not _SHA.fullmatch(self.base_model_revision):
            raise ConfigError(
                f"base_model_revision is {self.base_model_revision!r}; a base model is fixed by a commit sha (40 hex "
                "digits), so that it cannot change under the update.",
                f"Find it with `huggingface_hub.model_info({self.base_model_name_or_path!r}).sha`.",
            )
        _check_update(self.update)

    def __setattr__(self, key: str, value: Any) -> None:
        """Keeps the published setting in the form that JSON does not reorder, and refuses what is no setting."""
        if key == "inference_modules":
            try:
                value = (parse_setting if isinstance(value, Mapping) else parse_published)(value).published
            except SettingError as error:
                raise SettingError(f"inference_modules of config.json: {error.message}", error.hint) from error
        super().__setattr__(key, value)

    @property
    def setting(self) -> Setting:
        """The published default as a parsed setting."""
        if isinstance(self.inference_modules, Mapping):
            return parse_setting(self.inference_modules)
        return parse_published(self.inference_modules)

    @property
    def place(self) -> UpdatePlace:
        """Where the update lies, in this repository or in the one that `update` names."""
        return UpdatePlace.of(self.update)

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
            raise ConfigError(f"config.json holds a value that transformers cannot use: {error}.", _REPAIR) from error
        return (made[0], {**made[1], **requested}) if kwargs.get("return_unused_kwargs") else made

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Does nothing: a repository carries stubs that import this package, never copies of its modules.

        Args:
            auto_class: The Auto class, as transformers passes it after a load with `trust_remote_code=True`.
        """


_REPAIR = "Repair config.json, or write the repository anew with `taia create BASE ADAPTER`."


def _check_update(update: Any) -> None:
    if not isinstance(update, Mapping):
        raise ConfigError(f"update is {update!r}; it must be a mapping with 'kind' and 'path'.", _REPAIR)
    if unknown := sorted(set(update) - set(_UPDATE_KEYS)):
        raise ConfigError(f"update has unknown keys {unknown}; allowed are {list(_UPDATE_KEYS)}.", _REPAIR)
    if update.get("kind") not in tuple(KINDS):
        raise ConfigError(
            f"update.kind is {update.get('kind')!r}; this version of taia_hub reads {', '.join(KINDS)}.",
            "Upgrade with `pip install -U taia-hub`, or repair config.json.",
        )
    path, repo, revision = update.get("path", ""), update.get("repo"), update.get("revision")
    if not isinstance(path, str) or (path and not _FOLDER.fullmatch(path)):
        raise ConfigError(f"update.path is {path!r}; it must be a folder inside the repository.", _REPAIR)
    if repo is None:
        if not path:
            raise ConfigError("update.path is missing; it names the folder of the update.", _REPAIR)
        return
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ConfigError(f"update.repo is {repo!r}; it must be the id of a repository on the Hub.", _REPAIR) from error
    if not isinstance(revision, str) or not _SHA.fullmatch(revision):
        raise ConfigError(
            f"update.revision is {revision!r}; an adapter in another repository is fixed by a commit sha (40 hex "
            "digits), so that it cannot change under the model.",
            f"Find it with `huggingface_hub.model_info({repo!r}).sha`.",
        )
