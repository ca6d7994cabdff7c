"""`TAIAModel` and `TAIAForCausalLM`: a base model of any class, with a switch.

A loaded model *is* its base model's class: `TAIALlamaForCausalLM(TAIAForCausalLM, LlamaForCausalLM)` is made once a
base class. Everything but the switch, its status, saving and publishing is the base's own, so that whatever works
with the base (generation, Trainer, pipelines, evaluation) works with it unchanged.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedConfig
from transformers.utils.output_capturing import _CAN_RECORD_REGISTRY

from taia_hub.common.rebuildable import Rebuildable, subclass
from taia_hub.configuration_taia import TAIAConfig
from taia_hub.errors import ConfigError, UnsupportedUpdateError, UpdateMismatchError, misspelt
from taia_hub.hub.layout import PREFIX
from taia_hub.model.constructors import Loading
from taia_hub.model.habits import Habits
from taia_hub.model.outputs import Writing
from taia_hub.switch.blocks import Block
from taia_hub.switch.keyword import with_setting
from taia_hub.switch.switch import KeepSetting, Switch, SwitchStatus

if TYPE_CHECKING:
    from transformers import GenerationMixin, PreTrainedModel
    from typing_extensions import Self

    from taia_hub.repository.loading import Loaded
    from taia_hub.switch.settings import InferenceModules
    from taia_hub.updates.fusing import FuseReport

    class _Head(PreTrainedModel, GenerationMixin):
        """What an editor knows of a loaded language model, which is of its base model's class too."""

        def generate(self, *args: Any, **kwargs: Any) -> Any: ...
else:
    PreTrainedModel = _Head = object

_SETTABLE = ("inference_modules", "taia_config")
_CALLED = ("fuse", "fused", "status", "unfuse", "using")


class TAIAMixin(Habits, Loading, Writing, Rebuildable):
    """What a loaded TAIA model adds to its base model's class."""

    config_class: type[PreTrainedConfig] = TAIAConfig

    taia_config: TAIAConfig
    # ^ what config.json publishes; `config` is the base model's own
    _taia_switch: Switch
    _taia_update: Any  # an Update: transformers evaluates the annotations of classes, and would have it imported
    _taia_places: tuple[Any, ...]  # where its own tokenizer may lie

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # transformers looks up by class name what `output_hidden_states` records; a model's `__init__` enters it.
        dict.__setitem__(_CAN_RECORD_REGISTRY, str(cls), getattr(cls, "_can_record_outputs", None))
        if parts := cls.__dict__.get("_taia_parts"):
            _enlist(cls.__name__, parts[1].__name__)

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuses what would be set beside what is meant, or in place of a method: the mode would stay as it is."""
        meant = None if name.startswith("_") else misspelt(name, _SETTABLE)
        if meant and not hasattr(self, name):
            raise AttributeError(f"A TAIA model has no '{name}' to set. Did you mean '{meant}'?", name=name, obj=self)
        if name in _CALLED and not callable(value):
            raise AttributeError(
                f"'{name}' is called, not set. Set `model.inference_modules`, or write `model.{name}(...)`."
            )
        super().__setattr__(name, value)

    @classmethod
    def _class_body(cls, base: type) -> dict[str, Any]:
        methods = {name: with_setting(getattr(base, name)) for name in ("forward", "generate") if hasattr(base, name)}
        return {"config_class": base.config_class, **methods}  # type: ignore[attr-defined]

    @classmethod
    def from_loaded(cls, loaded: Loaded) -> Any:
        """Gives a base model with an attached update its generated class; the model object stays the same.

        With it comes what transformers says of loading the base, where that was asked for.
        """
        from taia_hub.updates.peft.alone import OneAdapter
        from taia_hub.updates.peft.update import PeftUpdate

        model: Any = loaded.model
        mixin = TAIAForCausalLM if cls._taia_head else TAIAModel
        model.taia_config = loaded.config
        model._taia_switch = loaded.switch
        model._taia_update = loaded.update
        model._taia_places = loaded.places
        model.peft_config = OneAdapter()
        if isinstance(loaded.update, PeftUpdate):
            tuner: Any = loaded.update.peft_model.base_model
            tuner.peft_config = model.peft_config = OneAdapter(tuner.peft_config)
            model._hf_peft_config_loaded = True  # Trainer: a quantised base with trainable adapters may be trained
        if getattr(loaded.update, "resized", None):
            model.loss_function = functools.partial(_over_all_rows, model.loss_function)
        model.__class__ = subclass(mixin, type(model))
        return model if loaded.info is None else (model, loaded.info)

    @classmethod
    def _from_config(cls, config: Any, **kwargs: Any) -> Any:
        raise ConfigError(
            "A TAIA model cannot be made from a configuration alone: its weights are an update of a base model.",
            "Use `from_pretrained(repository)` or `from_adapter(base, adapter)`.",
        )

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModel") -> None:
        """Does nothing: a repository carries stubs that import this package, never copies of its modules.

        transformers calls it after a load with `trust_remote_code=True`.
        """

    @property
    def inference_modules(self) -> str | dict[str, Any]:
        """The setting of this loaded model: a mode name, roles joined by `+`, or a mapping of selectors to weights.

        Setting it changes neither a weight nor what `config.json` publishes. A block of `using` and the keyword of
        `forward` and `generate` override it.

        Raises:
            SettingError: When set to something else, or to what cannot act on this update.
        """
        return self._taia_switch.default.value

    @inference_modules.setter
    def inference_modules(self, value: InferenceModules) -> None:
        self._taia_switch.default = value

    def using(self, inference_modules: InferenceModules) -> Block[Self]:
        """Puts a setting in force for a block, in this thread or task only.

        A thread that is started inside the block (as for a `TextIteratorStreamer`) begins with the model's own setting:
        pass the keyword `inference_modules` to the call that runs there. A block that a generator holds over a `yield`
        is in force in that generator alone, whoever steps it.

        Args:
            inference_modules: The setting.

        Returns:
            The block, for a `with` statement, which gives the model.

        Raises:
            SettingError: If the setting is not understood or cannot act on this update.

        Example:
            ```python
            with model.using("none"):
                base_logits = model(input_ids).logits
            ```
        """
        return Block(self._taia_switch, self._taia_switch.resolve(inference_modules), self)

    def fuse(self, inference_modules: InferenceModules) -> FuseReport:
        """Folds the updates that act under a setting into the live weights: the model runs at its base's speed.

        Until `unfuse`, every other setting raises, in every thread; `state_dict()` and saving give what they give
        unfused, and loading a state dict and training raise. Fuse between calls, not while one runs.

        Args:
            inference_modules: The setting.

        Returns:
            What was folded, and the memory it takes in bytes: the originals are kept, so that `unfuse` is exact, and
            the folded weights are there twice.

        Raises:
            SettingError: If the setting is not understood, or another one is fused.
            UnsupportedUpdateError: If an acting update cannot be folded, as on a quantised base; nothing was changed.

        Example:
            ```python
            model.fuse("attention")
            model.generate(**inputs)
            model.unfuse()
            ```
        """
        from taia_hub.updates import fusing

        return fusing.fuse(self, inference_modules)

    def unfuse(self) -> None:
        """Puts the original weights back, bit for bit; a model that is not fused stays as it is."""
        from taia_hub.updates import fusing

        fusing.unfuse(self)

    @contextlib.contextmanager
    def fused(self, inference_modules: InferenceModules) -> Iterator[Self]:
        """Fuses a setting for a block; where it is fused already, the block leaves it so.

        Args:
            inference_modules: The setting.

        Yields:
            The model.

        Raises:
            SettingError: As in `fuse`.
            UnsupportedUpdateError: As in `fuse`.

        Example:
            ```python
            with model.fused("attention"):
                model.generate(**inputs)
            ```
        """
        from taia_hub.updates import fusing

        with fusing.fused(self, inference_modules):
            yield self

    def tie_weights(self, *args: Any, **kwargs: Any) -> None:
        """Ties weights as the base's class does; a fused model keeps those it shows, so that `unfuse` is exact."""
        if self._taia_switch.fused is None:
            super().tie_weights(*args, **kwargs)  # type: ignore[misc]

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> Any:
        """Resizes embeddings and head as the base's class does; saving keeps all their rows, in the update's file.

        In a repository that is saved so they belong to the role `other`, and mode `none` is the base with its own rows.

        Args:
            *args: As in `PreTrainedModel.resize_token_embeddings`.
            **kwargs: See there.

        Returns:
            The embeddings.

        Raises:
            UnsupportedUpdateError: If the update changes embeddings or head itself, or its kind has no place for them.
        """
        from taia_hub.updates.peft.carried import check_resizable

        if args or kwargs:
            check_resizable(self._taia_update)
        return super().resize_token_embeddings(*args, **kwargs)  # type: ignore[misc]

    def status(self) -> SwitchStatus:
        """Returns which adapted modules act now, by role, with their weights and numbers of parameters."""
        return self._taia_switch.status()

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Loads a state dict; one with the names of PEFT's adapter file goes into the update.

        Args:
            state_dict: Tensors by the names of this model's `state_dict()`, or of `adapter_model.safetensors`.
            strict: As in `nn.Module.load_state_dict`.
            assign: As in `nn.Module.load_state_dict`; the update's tensors are always copied.

        Returns:
            `(missing_keys, unexpected_keys)`.

        Raises:
            UpdateMismatchError: If `strict` and tensors of the update are missing or unexpected.
        """
        if state_dict and all(key.startswith(PREFIX) for key in state_dict):
            result = self._taia_update.load(state_dict)
            if strict and (result.missing_keys or result.unexpected_keys):
                raise UpdateMismatchError(
                    f"The tensors do not fit the update: {len(result.missing_keys)} are missing and "
                    f"{len(result.unexpected_keys)} belong to no adapted module.",
                    "Load the file of the same adapter, or pass strict=False.",
                )
            return result
        return super().load_state_dict(state_dict, strict=strict, assign=assign)  # type: ignore[misc]

    def _set_gradient_checkpointing(
        self, enable: bool = True, gradient_checkpointing_func: Callable[..., Any] = checkpoint, **kwargs: Any
    ) -> None:
        function = KeepSetting(gradient_checkpointing_func, self._taia_switch)
        super()._set_gradient_checkpointing(enable, function, **kwargs)  # type: ignore[misc]


def _over_all_rows(
    function: Callable[..., Any], logits: Any, labels: Any, vocab_size: Any = None, **kwargs: Any
) -> Any:
    """Computes a loss over as many rows as the logits have: the configuration knows those of the base alone."""
    return function(logits=logits, labels=labels, vocab_size=logits.shape[-1], **kwargs)


def _enlist(name: str, base: str) -> None:
    """Names a generated class wherever transformers names its base's: pipelines and Trainer go by such names."""
    from transformers.models.auto import modeling_auto  # which has this module imported, where it comes first

    for listing, classes in vars(modeling_auto).items():
        if listing.endswith("_MAPPING_NAMES"):
            known = itertools.chain(*((one,) if isinstance(one, str) else one for one in classes.values()))
            if base in known:
                classes[f"taia {name}"] = name  # no model type: the Auto classes pass it over


class TAIAModel(TAIAMixin, PreTrainedModel):  # type: ignore[misc] # what it overrides takes other arguments
    """The backbone of a TAIA repository, without a head: what `AutoModel.from_pretrained` gives.

    Its hidden states are those inside `TAIAForCausalLM` bit for bit. It keeps the head's weights in memory, for saving.

    Example:
        ```python
        import taia_hub
        from transformers import AutoModel

        model = AutoModel.from_pretrained("org/model-taia")
        ```
    """

    _taia_head = False


class TAIAForCausalLM(TAIAMixin, _Head):  # type: ignore[misc] # what it overrides takes other arguments
    """The language model of a TAIA repository: what `AutoModelForCausalLM.from_pretrained` gives.

    A setting a row is for architectures whose first dimension is the batch: those of transformers are known; a custom
    one that puts the sequence first, or routes tokens to experts whose path does not say "expert", must not be given
    rows. `torch.compile` takes one graph for all modes with plain LoRA; MoE parameters and other methods break it.

    Example:
        ```python
        import taia_hub
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained("org/model-taia")  # attention updates only: TAIA
        model.inference_modules = "all"  # the vanilla fine-tune
        ```
    """


def load_given(model: Any, loading: Mapping[str, Any]) -> Any:
    """Returns a loaded TAIA model as it is, and loads one that is given by name, by the keywords of `from_pretrained`.

    Raises:
        ConfigError: If keywords came for a loaded model, or the model is neither.
        RepositoryError: As of `from_pretrained`.
    """
    if hasattr(model, "taia_config"):
        if loading:
            hint = "Leave it out, or give the model's name."
            raise ConfigError(f"'{min(loading)}' has no use for a loaded model.", hint)
        return model
    if not isinstance(model, (str, Path)):
        raise ConfigError(
            f"A {type(model).__name__} has no modes to compare.",
            "Load it with `TAIAForCausalLM.from_pretrained`, or give its name.",
        )
    return TAIAForCausalLM.from_pretrained(model, **loading)


class OtherHead:
    """What the Auto classes of other heads find for a TAIA repository: a sentence, not the list of all models."""

    config_class = TAIAConfig

    @classmethod
    def from_pretrained(cls, name: Any, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuses to load.

        Args:
            name: Folder or Hub id.
            *args: Not asked.
            **kwargs: Not asked.

        Raises:
            UnsupportedUpdateError: Always.
        """
        raise UnsupportedUpdateError(
            f"'{name}' is a TAIA repository: an update of a language model, which has no other head.",
            "Load it with `AutoModelForCausalLM`; for hidden states under a head of your own, with `AutoModel`; for "
            "another class of transformers write a plain model first: `taia merge REPO --mode ...`.",
        )

    @classmethod
    def _from_config(cls, config: Any, **kwargs: Any) -> NoReturn:
        cls.from_pretrained(config.base_model_name_or_path)
