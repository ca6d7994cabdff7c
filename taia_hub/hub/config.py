"""What `config.json` of a TAIA repository says, as plain values that are checked when they are read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from taia_hub.errors import ConfigError, SettingError, misspelt, short
from taia_hub.hub.access import CONFIG
from taia_hub.hub.files import read_json
from taia_hub.hub.layout import KINDS, UpdatePlace
from taia_hub.switch.settings import Setting, parse_published, parse_setting

MODEL_TYPE = "taia"
PAPER = "https://arxiv.org/abs/2405.20192"
"""Where TAIA comes from."""

REPAIR = "Repair config.json, or write the repository anew with `taia create BASE ADAPTER`."

AUTO_MAP = {
    "AutoConfig": "configuration_taia.TAIAConfig",
    "AutoModel": "modeling_taia.TAIAModel",
    "AutoModelForCausalLM": "modeling_taia.TAIAForCausalLM",
}
_SHA = re.compile(r"[0-9a-f]{40}")
_FOLDER = re.compile(r"\w[\w .+-]*(/\w[\w .+-]*)*")
_NAMES = ("inference_modules", "base_model_name_or_path", "base_model_revision")
_UPDATE_KEYS = ("kind", "path", "repo", "revision")


class Fields:
    """The fields of a TAIA repository's `config.json`, for the plain value here and for transformers' configuration.

    Attributes:
        base_model_name_or_path: Hub id or folder of the base model.
        base_model_revision: Commit sha of the base model, or None for a folder.
        inference_modules: The published default, in the form that JSON does not reorder: a text, or pairs of a
            selector and a weight.
        update: Where the update is: `kind` ("peft", "molora" or "dense"), `path` of its folder, and, when it lies in
            another repository, `repo` and `revision` (a commit sha).
    """

    base_model_name_or_path: str | None
    base_model_revision: str | None
    inference_modules: Any
    update: Any

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

    def _check(self) -> None:
        """Refuses values of the wrong type or range with a `ConfigError`."""
        for name in ("base_model_name_or_path", "base_model_revision"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or not value.strip()):
                raise ConfigError(f"{name} is {short(value)}; it must be a non-empty string or absent.", REPAIR)
        if self.base_model_revision is not None and not _SHA.fullmatch(self.base_model_revision):
            raise ConfigError(
                f"base_model_revision is {self.base_model_revision!r}; a base model is fixed by a commit sha (40 hex "
                "digits), so that it cannot change under the update.",
                f"Find it with `huggingface_hub.model_info({self.base_model_name_or_path!r}).sha`.",
            )
        _check_update(self.update)


@dataclass(frozen=True)
class RepositoryConfig(Fields):
    """`config.json` of a TAIA repository, read without transformers; attributes as of `Fields`.

    Raises:
        ConfigError: If a value has the wrong type or range.
        SettingError: If `inference_modules` is no setting.

    Example:
        >>> RepositoryConfig.of({"base_model_name_or_path": "org/base", "inference_modules": "all"}).setting.label
        'all'
    """

    model_type: ClassVar[str] = MODEL_TYPE

    base_model_name_or_path: str | None = None
    base_model_revision: str | None = None
    inference_modules: Any = "attention"
    update: Any = None

    def __post_init__(self) -> None:
        """Validates and normalises the fields."""
        object.__setattr__(self, "inference_modules", published_form(self.inference_modules))
        object.__setattr__(self, "update", default_update() if self.update is None else self.update)
        self._check()

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> RepositoryConfig:
        """Reads the contents of a `config.json`; keys of transformers' own are passed over."""
        for key in values:
            check_key(key)
        _check_auto_map(values.get("auto_map"))
        return cls(**{key: values[key] for key in Fields.__annotations__ if key in values})


def _check_auto_map(value: Any) -> None:
    """Refuses a repository that names code of somebody's own, which `trust_remote_code=True` would run."""
    named = value.items() if isinstance(value, Mapping) else () if value is None else [("auto_map", value)]
    for key, one in named:
        if not isinstance(one, str) or one.rpartition("--")[2] != AUTO_MAP.get(key):
            raise ConfigError(
                f"auto_map of config.json names {short(one)} for {key}, which is not taia-hub's code.",
                f"Do not load it with `trust_remote_code=True`. {REPAIR}",
            )


def check_key(key: str) -> None:
    """Refuses a key that is almost one of ours: what it says would have no effect.

    Raises:
        ConfigError: Where it is.
    """
    if meant := misspelt(key, _NAMES):
        raise ConfigError(f"The configuration has no '{key}'. Did you mean '{meant}'?", REPAIR)


def config_values(folder: Path) -> dict[str, Any]:
    """Returns the contents of a folder's `config.json`; empty where it has none."""
    path = folder / CONFIG
    return read_json(path) if path.is_file() else {}


def is_taia(values: Mapping[str, Any]) -> bool:
    """Tells whether the contents of a `config.json` are those of a TAIA repository."""
    return values.get("model_type") == MODEL_TYPE


def default_update() -> dict[str, str]:
    """Returns where an update is that `config.json` does not place."""
    return {"kind": "peft", "path": "adapter"}


def published_form(value: Any) -> Any:
    """Brings a published default into the form that JSON does not reorder: a text, or pairs of a selector and a weight.

    Raises:
        SettingError: If it is no setting.
    """
    try:
        return (parse_setting if isinstance(value, Mapping) else parse_published)(value).published
    except SettingError as error:
        raise SettingError(f"inference_modules of config.json: {error.message}", error.hint) from error


def _check_update(update: Any) -> None:
    if not isinstance(update, Mapping):
        raise ConfigError(f"update is {short(update)}; it must be a mapping with 'kind' and 'path'.", REPAIR)
    if unknown := sorted(set(update) - set(_UPDATE_KEYS)):
        raise ConfigError(f"update has unknown keys {unknown}; allowed are {list(_UPDATE_KEYS)}.", REPAIR)
    if update.get("kind") not in tuple(KINDS):
        raise ConfigError(
            f"update.kind is {short(update.get('kind'))}; this version of taia_hub reads {', '.join(KINDS)}.",
            "Upgrade taia-hub to its newest version, or repair config.json.",
        )
    path, repo, revision = update.get("path", ""), update.get("repo"), update.get("revision")
    if not isinstance(path, str) or len(path) > 200 or (path and not _FOLDER.fullmatch(path)):  # as disks name them
        raise ConfigError(f"update.path is {short(path)}; it must be a folder inside the repository.", REPAIR)
    if repo is None:
        if not path:
            raise ConfigError("update.path is missing; it names the folder of the update.", REPAIR)
        return
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ConfigError(
            f"update.repo is {short(repo)}; it must be the id of a repository on the Hub.", REPAIR
        ) from error
    if not isinstance(revision, str) or not _SHA.fullmatch(revision):
        raise ConfigError(
            f"update.revision is {short(revision)}; an adapter in another repository is fixed by a commit sha (40 hex "
            "digits), so that it cannot change under the model.",
            f"Find it with `huggingface_hub.model_info({short(repo)}).sha`.",
        )
