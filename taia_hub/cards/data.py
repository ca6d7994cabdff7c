"""What cards say: plain values, collected by others and checked by nobody here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from taia_hub.hub.layout import KINDS, PEFT, UpdatePlace
from taia_hub.results import Results, Tuned


@dataclass(frozen=True)
class RolePart:
    """The update's part of one role.

    Attributes:
        modules: Number of adapted modules.
        parameters: Number of the update's parameters.
        ranks: The ranks of its modules, each once; empty where the method has none or they are not known.
        resized: Whether it has another vocabulary than the base.
        frobenius: Frobenius norm of the update, where it was measured.
        relative: Frobenius norm relative to the base's weights, where it was measured.
        effective_rank: Mean effective rank of the modules, where it was measured.
        measured: Number of the modules that have a norm, where it was measured.
    """

    modules: int
    parameters: int
    ranks: tuple[int, ...] = ()
    frobenius: float | None = None
    relative: float | None = None
    effective_rank: float | None = None
    measured: int | None = None
    resized: bool = False


@dataclass(frozen=True)
class DatasetFacts:
    """A data set that was trained on.

    Attributes:
        name: What it is called.
        id: Hub id, or None.
        revision: Commit sha on the Hub, or None.
        items: Number of items that were used.
        bytes: Size of the file.
        sha256: Hash of the file.
        license: Its licence.
        url: Where it comes from, when it is not on the Hub.
    """

    name: str
    id: str | None = None
    revision: str | None = None
    items: int | None = None
    bytes: int | None = None
    sha256: str | None = None
    license: str | None = None
    url: str | None = None


@dataclass(frozen=True)
class Training:
    """How the update was trained.

    Attributes:
        datasets: The data.
        hyperparameters: Name to value.
        hardware: What it ran on: name to value.
        versions: Package to version.
        seconds: How long it took.
        co2_eq_emissions: As the Hub's metadata has it: grams, or a mapping with `emissions` and more.
        adapter_sha256: Hash of the update that came of it, where it is known.
    """

    datasets: tuple[DatasetFacts, ...] = ()
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    hardware: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    co2_eq_emissions: float | Mapping[str, Any] | None = None
    adapter_sha256: str | None = None


@dataclass(frozen=True)
class Figure:
    """A figure in the repository.

    Attributes:
        path: Path in the repository.
        alt: What it shows, in words.
    """

    path: str
    alt: str


@dataclass(frozen=True)
class CardData:
    """What the card of a TAIA repository says. What is None or empty is not on the card.

    Attributes:
        repo_id: The Hub id, or the folder's name.
        base_model: Hub id of the base model, or None while it is a local folder.
        base_revision: Commit sha of the base model, or None.
        method: PEFT's name of the update's method, as in `"LORA"`, or `"MOLORA"` or `"DENSE"`.
        parts: Role to the update's part of it.
        default: Label of the published setting.
        adapter_repo: Hub id of the repository that the update lies in, when it is another one.
        adapter_revision: Commit sha of that repository.
        update_kind: Kind of the update, one of `taia_hub.hub.layout.KINDS`.
        adapter_path: Folder of the update in its repository.
        adapter_sha256: Hash of the update's weights, or of the index of its shards.
        adapter_config: Contents of the update's configuration.
        taia_version: The version of taia-hub that wrote the repository.
        license_fields: `license`, `license_name`, `license_link`, as far as they are known.
        language: Codes of languages, as in `"en"`.
        datasets: Hub ids of data sets, beside those of `training`.
        tags: More tags.
        widget: Prompts that the Hub's page offers.
        training: How the update was trained.
        results: What was evaluated.
        figures: Figures in the repository.
        tuning: What a search over the weights of the update found.
        space: Hub id of the Space that compares the modes.
        update_notes: What to know of the measures of the update, a sentence each.
    """

    # The repository itself
    repo_id: str
    base_model: str | None
    base_revision: str | None
    method: str
    parts: Mapping[str, RolePart]
    default: str
    adapter_repo: str | None = None
    adapter_revision: str | None = None
    update_kind: str = "peft"
    adapter_path: str = "adapter"
    adapter_sha256: str | None = None
    adapter_config: Mapping[str, Any] = field(default_factory=dict)
    taia_version: str | None = None
    # The base model's card, or a person
    license_fields: Mapping[str, str | list[str]] = field(default_factory=dict)
    language: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    widget: tuple[str, ...] = ()
    # Files beside the model
    training: Training | None = None
    results: Results | None = None
    figures: tuple[Figure, ...] = ()
    tuning: Tuned | None = None
    # The card that is there
    space: str | None = None
    update_notes: tuple[str, ...] = ()

    @property
    def weights_path(self) -> str:
        """Path in its repository of the file whose sha256 names the update."""
        return UpdatePlace(KINDS[self.update_kind], self.adapter_path).weights

    @property
    def is_plain_adapter(self) -> bool:
        """Whether the repository is that of an adapter for PEFT itself, at its root."""
        return self.update_kind == PEFT.name and not (self.adapter_path or self.adapter_repo)

    @property
    def method_word(self) -> str:
        """The method as a word before "fine-tune"."""
        return {"LORA": "LoRA", "MOLORA": "MoLoRA", "DENSE": "full"}.get(self.method, self.method)


@dataclass(frozen=True)
class MergedCardData:
    """What the card of a model says that one setting of a TAIA repository was merged into.

    Attributes:
        repo_id: The Hub id, or the folder's name.
        base_model: Hub id of the base model.
        base_revision: Commit sha of the base model.
        source: Hub id of the TAIA repository.
        source_revision: Its commit sha.
        setting: Label of the setting that was merged.
        dtype: dtype of the weights.
        sha256: Weights file to its hash.
        taia_version: The version of taia-hub that merged.
        license_fields: `license`, `license_name`, `license_link`, as far as they are known.
    """

    repo_id: str
    base_model: str | None
    base_revision: str | None
    source: str | None
    source_revision: str | None
    setting: str
    dtype: str | None = None
    sha256: Mapping[str, str] = field(default_factory=dict)
    taia_version: str | None = None
    license_fields: Mapping[str, str | list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class SpaceCardData:
    """What the README of a Space says that compares the modes of TAIA repositories.

    Attributes:
        title: Title of the Space.
        sdk_version: Version of Gradio.
        models: Hub ids of the TAIA repositories, their base models and adapters.
        revisions: Hub id to the commit sha that is shown, and that the build loads beforehand.
        preload: Hub id to the files of it that the build loads beforehand, at the commit in `revisions`.
        licenses: Hub id to the licence of that model.
        app_file: The file that is run.
        emoji: An emoji.
        python_version: Version of Python.
        hardware: Suggested hardware, as in `"zero-a10g"`.
        short_description: One line for search results; cut at the Hub's limit of 60 characters.
        license: Licence of the Space's own files.
        tags: More tags.
    """

    title: str
    sdk_version: str
    models: tuple[str, ...] = ()
    revisions: Mapping[str, str] = field(default_factory=dict)
    preload: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    licenses: Mapping[str, str] = field(default_factory=dict)
    app_file: str = "app.py"
    emoji: str = "🔀"
    python_version: str | None = None
    hardware: str | None = None
    short_description: str | None = None
    license: str | None = None
    tags: tuple[str, ...] = ()


AnyCardData = CardData | MergedCardData | SpaceCardData
