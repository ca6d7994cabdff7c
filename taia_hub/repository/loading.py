"""From names to a loaded model with a switch: a TAIA repository, or a base model and an adapter."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from transformers import GenerationConfig, PreTrainedModel

from taia_hub import hub
from taia_hub.common.devices import fitting
from taia_hub.common.progress import Progress
from taia_hub.configuration_taia import TAIAConfig
from taia_hub.errors import ConfigError, RepositoryError, UnsupportedUpdateError, misspelt, short
from taia_hub.hub.config import AUTO_MAP
from taia_hub.hub.layout import PEFT, UpdatePlace
from taia_hub.refining.report import Method
from taia_hub.repository.refined import refine_adapter, write_refined
from taia_hub.repository.tokenizer import copy_tokenizer
from taia_hub.repository.update_files import Repository, open_repository, own_tokenizer
from taia_hub.roles import sublayers
from taia_hub.switch.settings import parse_setting
from taia_hub.switch.switch import Switch
from taia_hub.updates.attaching import Update, attach
from taia_hub.updates.dense.compressing import Compress, CompressionReport, compression_limits
from taia_hub.updates.dense.compressing import compress as compress_difference
from taia_hub.updates.dense.difference import DenseReport, write_dense
from taia_hub.updates.dense.update import DEFAULT_SETTING
from taia_hub.updates.options import AttachOptions
from taia_hub.weights.base_model import load_base
from taia_hub.weights.base_weights import base_reader
from taia_hub.weights.skeleton import skeleton

logger = logging.getLogger(__name__)

_HUB_KEYWORDS = ("token", "cache_dir", "local_files_only", "force_download")
_OPTIONS = ("inference_modules", "is_trainable", "autocast_adapter_dtype", "base_revision", "adapter_revision")
_INTERNAL_KEYWORDS = ("adapter_kwargs", "_from_auto", "_from_pipeline", "_commit_hash", "code_revision", "proxies")


@dataclass(frozen=True)
class Loaded:
    """A base model, with its head or without, still of the base's own class, with an update attached.

    Attributes:
        places: Where its own tokenizer may lie, as of `Repository.places`.
        info: What transformers says of loading the base, where `output_loading_info` asked for it.
        files: What was opened; None of a model that was there already.
    """

    model: PreTrainedModel
    config: TAIAConfig
    update: Update
    switch: Switch
    places: tuple[hub.Source, ...] = ()
    info: dict[str, Any] | None = None
    files: Repository | None = None


@dataclass(frozen=True)
class LoadOptions:
    """How a model is loaded, whatever its source.

    Attributes:
        inference_modules: The setting to begin with, or None for the published one (`"all"` where it is trained).
        verify: Whether the manifest is checked.
        autocast_adapter_dtype: Whether 16-bit adapter weights become float32, as PEFT does by default.
        skeleton: Whether the base is built on the meta device, without weights: enough to check an update. Or the
            base that was built so already, which the update is put on.
        subfolder: Folder of the update in its repository, as PEFT's keyword of this name.
    """

    access: hub.HubAccess
    base_keywords: dict[str, Any]
    head: bool = True
    inference_modules: Any = None
    verify: bool = True
    is_trainable: bool = False
    autocast_adapter_dtype: bool = True
    skeleton: bool | PreTrainedModel = False
    subfolder: str = ""

    @classmethod
    def split(cls, keywords: dict[str, Any], **options: Any) -> LoadOptions:
        """Sorts the keywords of a `from_pretrained` into those for the Hub and those for the base."""
        hub_keywords = {key: keywords.pop(key) for key in _HUB_KEYWORDS if key in keywords}
        for key in keywords:
            if meant := misspelt(key, _OPTIONS):
                raise ConfigError(f"The keyword '{key}' is not known. Did you mean '{meant}'?", f"Write {meant}=.")
        for key in _INTERNAL_KEYWORDS:  # what transformers' Auto classes pass along for their own loading
            keywords.pop(key, None)
        options["subfolder"] = keywords.pop("subfolder", None) or ""
        return cls(access=hub.HubAccess(**hub_keywords), base_keywords=keywords, **options)

    def named(self, name: str) -> str:
        """Returns a name with the folder in it that was asked for, as `open_repository` takes it."""
        return f"{name}@{self.subfolder}" if self.subfolder else name


def load_repository(name: str, revision: str | None, config: TAIAConfig | None, options: LoadOptions) -> Loaded:
    """Loads a TAIA repository, or a plain PEFT adapter on the base that it names.

    `config` is the configuration where transformers has read it already.

    Raises:
        UpdateMismatchError: If the update does not fit the base.
        UnsupportedUpdateError: If the update cannot be switched.
    """
    if config is not None and not isinstance(config, TAIAConfig):
        raise ConfigError(
            f"A {type(config).__name__} came as `config`; a TAIA repository has a TAIAConfig.",
            "Leave `config` out: the base model's comes from its own repository.",
        )
    name = options.named(name)
    found = open_repository(name, options.access, revision=revision, config=config, what="TAIA repository")
    found = found.with_weights(options.access, verify=options.verify)
    if found.is_plain:
        config = _new_config(found)
        config._name_or_path, config._commit_hash = found.name, found.revision
        loaded = _load(found, config, options)
        logger.warning(
            "'%s' is a plain PEFT adapter: on its base '%s' its '%s' updates act; `inference_modules` chooses others.",
            name,
            found.base.name,
            loaded.switch.default.label,
        )
        return loaded
    if config is None:
        config = TAIAConfig.from_dict(hub.read_json(found.root / hub.CONFIG))
    generation = _generation_config(found.root) if (found.root / hub.GENERATION).is_file() else None
    config._name_or_path, config._commit_hash = found.name, found.revision
    options.base_keywords.setdefault("attn_implementation", config._attn_implementation)
    options.base_keywords.setdefault("experts_implementation", config._experts_implementation)
    for key, default in (("output_hidden_states", False), ("return_dict", True)):  # transformers' Auto classes
        if (value := getattr(config, key)) != default:  # put these keywords into the configuration that they read
            options.base_keywords.setdefault(key, value)
    loaded = _load(found, config, options)
    if loaded.model.can_generate() and generation is not None:
        loaded.model.generation_config = generation
    return loaded


def load_adapter(
    base: str | hub.Source | None,
    adapter: str,
    base_revision: str | None,
    adapter_revision: str | None,
    published: Any,
    options: LoadOptions,
) -> Loaded:
    """Loads a base model and any PEFT adapter, or the folder of an update of another kind.

    The base is by default the one that the adapter names. Its revision is by default the one that the adapter names,
    else the main branch; `published` is the setting that the configuration publishes.

    Raises:
        UpdateMismatchError: If the update does not fit the base.
        UnsupportedUpdateError: If the update cannot be switched.
    """
    adapter = options.named(adapter)
    found = open_repository(
        adapter, options.access, revision=adapter_revision, base=base, base_revision=base_revision, what="adapter"
    )
    if not found.is_plain:
        raise RepositoryError(
            f"'{adapter}' has no {hub.ADAPTER_CONFIG}: it is a TAIA repository already.",
            "Load it with `from_pretrained`, show it with `taia info`, publish it with `taia push` (on a Hub base with "
            "--base); or give the folder or repository that PEFT saved the adapter to"
            + (f", as '{adapter}/{found.place.path}'." if found.revision is None else "."),
        )
    found = found.with_weights(options.access)
    return _load(found, _new_config(found, inference_modules=published), options)


def load_refined(loaded: Loaded, folder: Path, options: LoadOptions, progress: Progress | None = None) -> Loaded:
    """Loads what NoRM makes of an adapter that `load_adapter` put on its base, or on the structure of it.

    The refined adapter goes to `folder`, which the loaded model reads as long as it lives. Errors as of `refine_lora`.
    """
    found = cast(Repository, loaded.files)
    refine_adapter(
        loaded.update,
        loaded.switch,
        found.base,
        options.access,
        folder,
        features_only=found.features_only,
        trust_remote_code=bool(options.base_keywords.get("trust_remote_code")),
        progress=progress,
    )
    holder = hub.Source(found.holder.name, folder, None)
    refined = dataclasses.replace(found, holder=holder, place=UpdatePlace(PEFT, ""))
    return _load(refined, loaded.config, options)


def load_finetuned(
    base: hub.Source,
    finetuned: hub.Source,
    published: Any,
    options: LoadOptions,
    scratch: Path,
    compress: Compress = None,
    refine: Method | None = None,
    progress: Progress | None = None,
) -> tuple[Loaded, DenseReport | CompressionReport]:
    """Loads a base model with a full fine-tune of it as its update, both as `fetch_checkpoints` brought them.

    The update's files go to `scratch`, which the loaded model reads as long as it lives. `published` is by default
    `"attention+other"`, or `"attention"` where the difference is compressed. The report says how the two checkpoints
    differ or what compressing lost; where the difference is refined, its record lies in `scratch`.

    Raises:
        UpdateMismatchError: If the two are not of one family, or do not differ.
    """
    trusted = bool(options.base_keywords.get("trust_remote_code"))
    report: DenseReport | CompressionReport
    if refine is not None:
        report = write_refined(base.folder, finetuned.folder, scratch, trust_remote_code=trusted, progress=progress)
    elif compress is None:
        report = write_dense(base.folder, finetuned.folder, scratch, trust_remote_code=trusted, progress=progress)
    else:
        limits = compression_limits(compress)
        report = compress_difference(
            base.folder,
            finetuned.folder,
            scratch,
            **limits,
            base_name=base.name,
            trust_remote_code=trusted,
            progress=progress,
        )
    if published is None:
        published = DEFAULT_SETTING if compress is None else "attention"
    if own := own_tokenizer([finetuned]):
        copy_tokenizer(own, scratch)
    found = open_repository(scratch, options.access, base=base).with_weights(options.access)
    loaded = _load(found, _new_config(found, inference_modules=published), options)
    if loaded.model.can_generate() and (finetuned.folder / hub.GENERATION).is_file():
        loaded.model.generation_config = _generation_config(finetuned.folder)
    return loaded, report


def _generation_config(folder: Path) -> GenerationConfig:
    """Reads `generation_config.json` in a folder, whose values transformers would stumble on later."""
    values, again = hub.read_json(folder / hub.GENERATION), "Correct the value, or take the base model's file."
    for key, value in values.items():
        ids = value if isinstance(value, list) else () if value is None else (value,)
        if key.endswith("_token_id") and not all(type(one) is int for one in ids):
            raise ConfigError(
                f"{key} in {hub.GENERATION} of '{folder}' is {short(value)}; numbers are expected.", again
            )
    with hub.foreign_errors(str(folder), what="model", hint=f"Write its {hub.GENERATION} again."):
        found = GenerationConfig.from_pretrained(str(folder))
    return found


def fetch_checkpoints(
    base: str | hub.Source,
    finetuned: str,
    base_revision: str | None,
    finetuned_revision: str | None,
    access: hub.HubAccess,
) -> tuple[hub.Source, hub.Source]:
    """Brings the weights of a base model and of its fine-tune to this disk, at fixed commits of the Hub."""
    name, revision = (base.name, base.revision) if isinstance(base, hub.Source) else (base, base_revision)
    return (
        hub.fetch_model(name, revision=revision, access=access, what="base model"),
        hub.fetch_model(finetuned, hub.TOKENIZER_FILES, revision=finetuned_revision, access=access, what="fine-tune"),
    )


def _new_config(found: Repository, **fields: Any) -> TAIAConfig:
    """Makes the configuration of a repository of an update that has none yet."""
    return TAIAConfig(  # type: ignore[call-arg]  # PreTrainedConfig takes any keyword
        architectures=["TAIAForCausalLM"],
        auto_map=dict(AUTO_MAP),
        base_model_name_or_path=found.config.base_model_name_or_path,
        base_model_revision=found.config.base_model_revision,
        update=found.config.update,
        **fields,
    )


@fitting()
def _load(found: Repository, config: TAIAConfig, options: LoadOptions) -> Loaded:
    """Puts the update of an opened repository on its base model, under a switch."""
    setting: Any = options.inference_modules
    if setting is None:
        setting = "all" if options.is_trainable else config.setting
    setting = parse_setting(setting).resolved(config.setting)
    if found.features_only and options.head:
        raise UnsupportedUpdateError(
            "The adapter was trained on a model without a language-modelling head.",
            "Load it with `TAIAModel` or `AutoModel`.",
        )
    model, info = _base_model(found, options)
    placed = sublayers.find_sublayers(model)
    read_base = None
    if options.skeleton:  # what the weights decide is read from the files
        trusted = bool(options.base_keywords.get("trust_remote_code"))
        read_base = base_reader(found.base, options.access, lambda: skeleton(found.base, options.access, trusted))
    how = options.is_trainable, options.autocast_adapter_dtype, read_base
    update, switch = attach(
        model, found.folder, found.kind, AttachOptions(placed.roles, placed.unplaced, setting, *how)
    )
    switch.published = config
    switch.resolve(config.setting)  # what is published must act too, also where the model begins with another setting
    config.base_model_revision = found.base.revision
    for role in ("attention", "ffn"):
        if not any(site.role == role for site in switch.sites):
            logger.warning("This update has no %s part: mode '%s' equals the base model.", role, role)
    if not options.head and not found.features_only:
        path, model = _backbone(model)
        update.prefix = f"{path}."
    return Loaded(model, config, update, switch, found.places, info, found)


def _base_model(found: Repository, options: LoadOptions) -> tuple[PreTrainedModel, dict[str, Any] | None]:
    """Loads the base model, or builds it without its weights; no TAIA model is one.

    Returns what transformers says of loading it, too, where it was asked to.
    """
    base = found.base
    hub_keywords = {"revision": base.revision, **{key: getattr(options.access, key) for key in _HUB_KEYWORDS}}
    keywords = {key: value for key, value in {**hub_keywords, **options.base_keywords}.items() if value is not None}
    if not options.skeleton:
        loaded: Any = load_base(base, features_only=found.features_only, **keywords)
        return loaded if isinstance(loaded, tuple) else (loaded, None)
    if base.revision:  # a folder was looked at when it was found
        names, access = [hub.ADAPTER_CONFIG], options.access
        there = hub.fetch(base.name, names, revision=base.revision, access=access, what="base model", local=False)
        hub.check_alone(there)
    model: PreTrainedModel = (
        skeleton(
            base,
            options.access,
            keywords.get("trust_remote_code", False),
            features_only=found.features_only,
        )
        if options.skeleton is True
        else options.skeleton
    )
    if (base.folder / hub.GENERATION).is_file():
        with hub.foreign_errors(base.name, what="base model", revision=base.revision):
            model.generation_config = GenerationConfig.from_pretrained(str(base.folder))
    return model, None


def _backbone(model: PreTrainedModel) -> tuple[str, PreTrainedModel]:
    """Finds the model without its head, and its path in the head model."""
    if model.base_model is not model:
        return model.base_model_prefix, cast(PreTrainedModel, model.base_model)
    for path, module in model.named_modules():  # a few classes name a prefix that they do not have
        if path and isinstance(module, PreTrainedModel):
            return path, module
    raise UnsupportedUpdateError(
        f"{type(model).__name__} has no backbone that stands alone.", "Load it with `TAIAForCausalLM`."
    )
