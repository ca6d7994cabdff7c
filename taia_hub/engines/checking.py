"""What the engines' loaders make of an adapter as it lies in a folder or on the Hub: from configuration and header."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from huggingface_hub.errors import SafetensorsParsingError

from taia_hub import hub
from taia_hub.engines.facts import Adapter, BaseFacts, Verdict
from taia_hub.engines.rules import LOADERS, check_engine, check_known
from taia_hub.errors import ConfigError, RepositoryError, TAIAError
from taia_hub.hub.config import RepositoryConfig, config_values, is_taia
from taia_hub.hub.layout import PEFT, PREFIX

_SINGLE = "model.safetensors"


@dataclass(frozen=True)
class AdapterCheck:
    """What the engines make of an adapter.

    Attributes:
        name: Hub id or folder; of a TAIA repository, that of the adapter in it, which holds the full update.
        revision: Commit of the repository; None for a folder.
        config: Contents of its `adapter_config.json`.
        base: What is known of its base model; no modules where its files could not be read.
        verdicts: Engine to what it makes of the adapter.
    """

    name: str
    revision: str | None
    config: Mapping[str, Any]
    base: BaseFacts
    verdicts: Mapping[str, Verdict]

    @property
    def taken_by(self) -> tuple[str, ...]:
        """The engines that take it as it is."""
        return tuple(engine for engine, verdict in self.verdicts.items() if not verdict.problems)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON."""
        return {
            "adapter": self.name,
            "revision": self.revision,
            "base_model": self.config.get("base_model_name_or_path"),
            "base_was_read": bool(self.base.modules),
            "engines": {
                engine: {
                    "takes": not one.problems,
                    "refusals": [
                        {"reason": reason, "source": source}
                        for reason, source in zip(one.problems, one.sources, strict=True)
                    ],
                    "notes": list(one.notes),
                }
                for engine, one in self.verdicts.items()
            },
        }


def check_adapter(
    name: str | os.PathLike[str],
    engines: Sequence[str] = (),
    *,
    revision: str | None = None,
    access: hub.HubAccess | None = None,
) -> AdapterCheck:
    """Says which engines take an adapter as it is, and what the others refuse.

    No model is built and no weight is read. Of the base model, where it can be reached, the names of its tensors are
    read, which tell whether some layers have no update.

    Args:
        name: Hub id or folder of a PEFT adapter or an export, or of a TAIA repository that holds its adapter.
        engines: Names of `LOADERS`; all of them by default.
        revision: Revision of the repository.
        access: How to reach the Hub.

    Returns:
        Each engine's verdict.

    Raises:
        RepositoryError: If there is no adapter, or it is pickled or damaged.
        ConfigError: If its configuration is malformed, or an engine is not known.

    Example:
        ```python
        check_adapter("org/adapter").taken_by  # ('vllm', 'peft')
        ```
    """
    for engine in engines:
        check_known(engine)
    files = [*PEFT.files, hub.PICKLED_WEIGHTS]
    access = access or hub.HubAccess()
    wanted = [*files, *(f"{PEFT.folder}/{file}" for file in files)]
    source = hub.fetch(name, [hub.CONFIG, *wanted], revision=revision, access=access, what="adapter")
    _refuse_other_kinds(source)
    inner = source.folder / PEFT.folder
    folder = inner if (inner / PEFT.config).is_file() else source.folder
    shapes = hub.tensor_shapes(hub.adapter_weights(folder))
    config = hub.read_json(folder / PEFT.config)
    try:
        base = _base_facts(Adapter(config, shapes, BaseFacts()), access)
        verdicts = {engine: check_engine(engine, config, shapes, base) for engine in engines or LOADERS}
    except (AttributeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{PEFT.config} of '{name}' is malformed: {error}.", "Save the adapter again with PEFT."
        ) from error
    checked = source.name if folder == source.folder else f"{source.name}/{PEFT.folder}"
    return AdapterCheck(checked, source.revision, config, base, verdicts)


def _refuse_other_kinds(source: hub.Source) -> None:
    """Refuses a TAIA repository whose update is no adapter, whatever else lies in it."""
    values = config_values(source.folder)
    if is_taia(values) and (kind := RepositoryConfig.of(values).place.kind) is not PEFT:
        raise RepositoryError(
            f"'{source.name}' holds a {kind.noun}, which no engine takes as it is.",
            "Write a mode of it as a plain LoRA with `taia export`, or as a plain model with `taia merge`.",
        )


def _base_facts(adapter: Adapter, access: hub.HubAccess) -> BaseFacts:
    """Collects what the rules ask of the base model, from its configuration and the names of its tensors."""
    embeddings = {path for path in adapter.paths if path.rpartition(".")[2] in ("lm_head", "embed_out")}
    split = (name.removeprefix(PREFIX).partition(".lora_embedding_") for name in adapter.shapes)
    embeddings |= {path for path, found, _ in split if found}
    name, commit = adapter.config.get("base_model_name_or_path"), adapter.config.get("revision")
    if not isinstance(name, str) or not name:
        return BaseFacts(embeddings=frozenset(embeddings), remote=False)
    remote = not (hub.is_path(name) or os.path.isdir(name))
    try:
        tensors, tied = _base_tensors(name, commit, access)
    except (TAIAError, OSError, SafetensorsParsingError):
        return BaseFacts(embeddings=frozenset(embeddings), remote=remote)
    modules = {tensor.removesuffix(".weight") for tensor in tensors if tensor.endswith(".weight")}
    modules |= {"lm_head"} if tied else set()
    known = modules if adapter.paths <= modules else set()  # a checkpoint may have other names than the model
    return BaseFacts(frozenset(known), frozenset(embeddings), tied, remote)


def _base_tensors(name: str, commit: str | None, access: hub.HubAccess) -> tuple[set[str], bool]:
    """Reads the names of the base's tensors, and whether its head shares the embedding's weight."""
    source = hub.fetch(name, (hub.CONFIG, hub.MODEL_INDEX), revision=commit, access=access, what="base model")
    if (source.folder / hub.MODEL_INDEX).is_file():
        tensors = set(hub.read_json(source.folder / hub.MODEL_INDEX).get("weight_map", ()))
    elif (source.folder / _SINGLE).is_file():
        tensors = set(hub.tensor_shapes(source.folder / _SINGLE))
    elif source.revision is not None:
        tensors = set(hub.safetensors_header(source, _SINGLE, access, what="base model").tensors)
    else:
        tensors = set()
    told = hub.read_json(source.folder / hub.CONFIG).get("tie_word_embeddings")
    return tensors, bool(tensors and "lm_head.weight" not in tensors) if told is None else bool(told)
