"""A base model as transformers loads it; what is no causal language model is named before anything is built."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import AutoModel, AutoModelForCausalLM
from transformers import __version__ as transformers_version
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from taia_hub import hub
from taia_hub.errors import ConfigError, RepositoryError, UnsupportedUpdateError, closest
from taia_hub.hub.config import is_taia

_TRUST = "Read that code; where you trust it, allow it with trust_remote_code=True (--trust-remote-code)."
_GIVE = "Give the causal language model that the update was trained on."
_KINDS = {
    "IMAGE_TEXT_TO_TEXT": "an image-text model",
    "SEQ_TO_SEQ_CAUSAL_LM": "an encoder-decoder",
    "SPEECH_SEQ_2_SEQ": "a speech model",
    "CTC": "a speech model",
    "IMAGE_CLASSIFICATION": "an image model",
    "MASKED_LM": "an encoder",
}
"""Part of the name of a list of classes in transformers to what a model type in it is; the first that has it counts."""
_HEADS = ("SequenceClassification", "TokenClassification", "QuestionAnswering", "MultipleChoice", "RewardModel")


def load_base(base: hub.Source, *, features_only: bool = False, what: str = "base model", **keywords: Any) -> Any:
    """Loads a base model by transformers' `keywords`, without its head where `features_only`; messages call it `what`.

    Returns:
        The model; with `output_loading_info=True` also what transformers says of loading, as it returns both.

    Raises:
        RepositoryError: If a file is missing, damaged, or cannot be reached, or weights are missing.
        ConfigError: If it is no causal language model, or its configuration or weights cannot be used.
        MissingDependencyError: If its quantisation or its own code needs what is not installed.
        UnsupportedUpdateError: If it is a TAIA repository.
    """
    trusted = bool(keywords.pop("trust_remote_code", None))  # where nothing is said, transformers asks at the terminal
    values = check_base(base, trusted, features_only=features_only, what=what)
    hint = ""
    if method := quantised(values):
        hint = (
            f"Its weights are quantised ({method}): install what that needs, or put the update on the unquantised "
            "model that it was made from: `TAIAForCausalLM.from_adapter(base, adapter)`, --base."
        )
    auto = AutoModel if features_only else AutoModelForCausalLM
    keywords = {"revision": base.revision, **keywords, "trust_remote_code": trusted}
    wanted = keywords.pop("output_loading_info", False)
    with hub.foreign_errors(base.name, what=what, revision=base.revision, hint=hint):
        loaded: Any = auto.from_pretrained(base.name, **keywords, output_loading_info=True)
    model, info = loaded
    if info["missing_keys"] and not features_only:  # a backbone may lack what only a head reads
        missing = sorted(info["missing_keys"])
        raise RepositoryError(
            f"The {what} '{base.name}' lacks {len(missing)} of its weights, first '{missing[0]}'; transformers would "
            "make them up at random.",
            "Give the whole causal language model; `save_pretrained` of its backbone leaves the head out.",
        )
    return (model, info) if wanted else model


def check_base(
    base: hub.Source, trust_remote_code: bool = False, *, features_only: bool = False, what: str = "base model"
) -> dict[str, Any]:
    """Returns a base model's config.json; what is no causal language model, or must run code of its own, is refused.

    Errors as of `load_base`.
    """
    values = hub.read_json(base.folder / hub.CONFIG)
    if (base.folder / hub.GENERATION).is_file():
        hub.read_json(base.folder / hub.GENERATION)  # transformers reads it too, and does not say which file it was
    kind, code = values.get("model_type"), values.get("auto_map") or {}
    if is_taia(values):
        raise UnsupportedUpdateError(
            f"The {what} '{base.name}' is itself a TAIA repository.", "Merge it first, and name the merged model."
        )
    no = f"The {what} '{base.name}' is no language model that transformers can build: "
    if not isinstance(code, Mapping):
        raise ConfigError(f"{no}auto_map of its {hub.CONFIG} is {code!r:.60}.", "It maps names of classes to code.")
    auto = "AutoModel" if features_only else "AutoModelForCausalLM"
    mapping: Any = modeling_auto.MODEL_MAPPING if features_only else modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING
    known = CONFIG_MAPPING[kind] if isinstance(kind, str) and kind in CONFIG_MAPPING else None
    if known in mapping:
        _check_head(values, no, features_only)
    elif code and (auto in code or known is None):
        if not trust_remote_code:
            raise ConfigError(f"{no}it has code of its own ({_places(code)}), which did not run.", _TRUST)
    elif known is not None:
        raise ConfigError(
            f"{no}it is a {kind}{_family(str(kind))}, which {auto} does not load; TAIA takes causal language models.",
            _GIVE,
        )
    elif isinstance(kind, str):
        raise ConfigError(
            f"{no}transformers {transformers_version} does not know its model_type '{kind}'."
            f"{closest(kind, CONFIG_MAPPING)}",
            "Upgrade transformers, or correct config.json; where the model has code of its own, allow it with "
            "trust_remote_code=True (--trust-remote-code).",
        )
    else:
        part = "it is a part of a pipeline of diffusers" if "_class_name" in values else f"its model_type is {kind!r}"
        raise ConfigError(f"{no}{part:.80}.", f"Give a model of transformers, whose {hub.CONFIG} names a model_type.")
    return values


def quantised(values: Mapping[str, Any]) -> str:
    """Returns how the weights of a model are quantised, as its config.json says; empty where they are not."""
    text = values.get("text_config")
    settings = values.get("quantization_config")
    settings = settings or (text.get("quantization_config") if isinstance(text, Mapping) else None)
    method = settings.get("quant_method") if isinstance(settings, Mapping) else None
    return str(method or "by an unnamed method") if settings else ""


def _check_head(values: Mapping[str, Any], no: str, features_only: bool) -> None:
    """Refuses a checkpoint that was saved with another head: transformers would make one up at random."""
    named = values.get("architectures")
    classes = [str(one) for one in named] if isinstance(named, list) else []
    if classes and not features_only and all(one.endswith(_HEADS) for one in classes):
        raise ConfigError(
            f"{no}it is a {classes[0]}, whose files hold no head of a language model; TAIA takes causal language "
            "models.",
            _GIVE,
        )


def _family(kind: str) -> str:
    lists = (getattr(modeling_auto, f"MODEL_FOR_{part}_MAPPING_NAMES", {}) for part in _KINDS)
    return next((f" ({said})" for said, names in zip(_KINDS.values(), lists, strict=True) if kind in names), "")


def _places(code: Mapping[str, Any]) -> str:
    """Names the files that hold a model's own code, and the repository where that is another one."""
    texts = [str(one[0] if isinstance(one, list) and one else one) for one in code.values()]
    parts = (text.rpartition("--") for text in texts)
    return ", ".join(sorted({f"{place.partition('.')[0]}.py{repo and f' of {repo}'}" for repo, _, place in parts}))[
        :200
    ]
