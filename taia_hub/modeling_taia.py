"""`TAIAModel` and `TAIAForCausalLM`: a base model of any class, with a switch.

A loaded model *is* its base model's class: `TAIALlamaForCausalLM(TAIAForCausalLM, LlamaForCausalLM)` is made once a
base class. Everything but the switch, its status, saving and publishing is the base's own, so that whatever works
with the base (generation, Trainer, pipelines, evaluation) works with it unchanged.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import CommitInfo
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedConfig
from transformers.utils.output_capturing import _CAN_RECORD_REGISTRY

from taia_hub import publishing
from taia_hub._calls import with_setting
from taia_hub._subclass import Rebuildable, subclass
from taia_hub.configuration_taia import TAIAConfig
from taia_hub.errors import ConfigError, UpdateMismatchError
from taia_hub.loading import (
    Loaded,
    LoadOptions,
    fetch_checkpoints,
    load_adapter,
    load_finetuned,
    load_repository,
)
from taia_hub.switch import KeepSetting, Switch, SwitchStatus
from taia_hub.updates.attaching import Update
from taia_hub.updates.compressing import Compress
from taia_hub.updates.peft import PREFIX, PeftUpdate

_IGNORED_WHEN_SAVING = ("save_function", "safe_serialization", "max_shard_size")


class TAIAMixin(Rebuildable):
    """What a loaded TAIA model adds to its base model's class."""

    config_class: type[PreTrainedConfig] = TAIAConfig

    taia_config: TAIAConfig
    # ^ what config.json publishes; `config` is the base model's own
    _taia_switch: Switch
    _taia_update: Update
    _taia_head: bool = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # transformers looks up by class name what `output_hidden_states` records; a model's `__init__` enters it.
        dict.__setitem__(_CAN_RECORD_REGISTRY, str(cls), getattr(cls, "_can_record_outputs", None))

    @classmethod
    def _class_body(cls, base: type) -> dict[str, Any]:
        methods = {name: with_setting(getattr(base, name)) for name in ("forward", "generate") if hasattr(base, name)}
        return {"config_class": base.config_class, **methods}  # type: ignore[attr-defined]

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        config: TAIAConfig | None = None,
        revision: str | None = None,
        inference_modules: Any = None,
        verify: bool = True,
        is_trainable: bool = False,
        autocast_adapter_dtype: bool = True,
        **kwargs: Any,
    ) -> Any:
        """Loads a TAIA repository, or a plain PEFT adapter on the base model that it names.

        Args:
            pretrained_model_name_or_path: Folder or Hub id.
            config: The configuration, where transformers has read it already.
            revision: Revision of the TAIA repository; the base model's stands in `config.json`.
            inference_modules: The setting to begin with; by default the published one, or `"all"` when
                `is_trainable`. It does not change what `config.json` publishes.
            verify: Whether the weights are checked against `taia_manifest.json`.
            is_trainable: Whether the update's parameters get gradients.
            autocast_adapter_dtype: Whether 16-bit adapter weights become float32, as PEFT does by default.
            **kwargs: `token`, `cache_dir`, `local_files_only`, `force_download` for the Hub; everything else, such as
                `dtype`, `device_map`, `attn_implementation`, `quantization_config`, for the base model.

        Returns:
            The model, of a subclass of its base model's class.

        Raises:
            TAIAError: If the repository, its configuration or its update is missing, damaged or does not fit; the
                message says what came, what is allowed and what to do.

        Example:
            ```python
            model = TAIAForCausalLM.from_pretrained("org/model-taia")
            model.inference_modules = "all"
            ```
        """
        options = LoadOptions.split(
            kwargs,
            head=cls._taia_head,
            inference_modules=inference_modules,
            verify=verify,
            is_trainable=is_trainable,
            autocast_adapter_dtype=autocast_adapter_dtype,
        )
        return cls.from_loaded(load_repository(os.fspath(pretrained_model_name_or_path), revision, config, options))

    @classmethod
    def from_adapter(
        cls,
        base: str | os.PathLike[str],
        adapter: str | os.PathLike[str],
        *,
        base_revision: str | None = None,
        adapter_revision: str | None = None,
        inference_modules: Any = "attention",
        is_trainable: bool = False,
        autocast_adapter_dtype: bool = True,
        **kwargs: Any,
    ) -> Any:
        """Puts any PEFT adapter on its base model, with a switch.

        Args:
            base: Folder or Hub id of the base model.
            adapter: Folder or Hub id of the adapter, trained by PEFT or saved by it.
            base_revision: Revision of the base; by default the one that the adapter names, else the main branch. The
                commit that it points to goes into `config.json`.
            adapter_revision: Revision of the adapter.
            inference_modules: The published default, and the setting to begin with.
            is_trainable: Whether the update's parameters get gradients; the model then begins with `"all"`, so that
                the whole update is trained, whatever is published.
            autocast_adapter_dtype: Whether 16-bit adapter weights become float32, as PEFT does by default.
            **kwargs: As in `from_pretrained`.

        Returns:
            The model, of a subclass of its base model's class.

        Raises:
            TAIAError: If base or adapter is missing, damaged, or they do not fit together.

        Example:
            ```python
            model = TAIAForCausalLM.from_adapter("org/base", "./lora")
            model.push_to_hub("org/model-taia")
            ```
        """
        options = LoadOptions.split(
            kwargs,
            head=cls._taia_head,
            inference_modules=None,
            verify=True,
            is_trainable=is_trainable,
            autocast_adapter_dtype=autocast_adapter_dtype,
        )
        loaded = load_adapter(
            os.fspath(base), os.fspath(adapter), base_revision, adapter_revision, inference_modules, options
        )
        return cls.from_loaded(loaded)

    @classmethod
    def from_finetuned(
        cls,
        base: str | os.PathLike[str],
        finetuned: str | os.PathLike[str],
        *,
        base_revision: str | None = None,
        finetuned_revision: str | None = None,
        inference_modules: Any = None,
        compress: Compress = None,
        **kwargs: Any,
    ) -> Any:
        """Puts a full fine-tune on its base model, with a switch.

        The tensors that differ are written to a temporary folder, which is removed when the process ends; use
        `taia create BASE FINETUNED --dense --out DIR` for a repository that stays.

        Args:
            base: Folder or Hub id of the base model.
            finetuned: Folder or Hub id of a checkpoint of the same architecture that was trained from it.
            base_revision: Revision of the base; the main branch by default. The commit that it points to goes into
                `config.json`.
            finetuned_revision: Revision of the fine-tune.
            inference_modules: The published default, and the setting to begin with. By default `"attention+other"`:
                only the FFN goes back to the base; norms, embeddings and head stay tuned, as in the authors' code.
            compress: Makes a plain LoRA of the difference by truncated SVD, which loses something: its rank, the share
                of each difference's squared norm that it keeps (a float up to 1), or either by role, as in
                `{"attention": 32, "ffn": 0.9}`. The default setting is then `"attention"`.
            **kwargs: As in `from_pretrained`.

        Returns:
            The model, of a subclass of its base model's class. In mode `"none"` it is the base and, unless compressed,
            in mode `"all"` the fine-tune, bit for bit.

        Raises:
            TAIAError: If one is missing or damaged, they are not of one family, or they do not differ.

        Example:
            ```python
            model = TAIAForCausalLM.from_finetuned("org/base", "org/base-instruct")
            ```
        """
        options = LoadOptions.split(
            kwargs,
            head=cls._taia_head,
            inference_modules=None,
            verify=True,
            is_trainable=False,
            autocast_adapter_dtype=False,
        )
        one, other = fetch_checkpoints(
            os.fspath(base), os.fspath(finetuned), base_revision, finetuned_revision, options.access
        )
        scratch = tempfile.mkdtemp(prefix="taia-dense-")
        atexit.register(shutil.rmtree, scratch, ignore_errors=True)
        loaded, _ = load_finetuned(one, other, inference_modules, options, Path(scratch), compress)
        return cls.from_loaded(loaded)

    @classmethod
    def from_loaded(cls, loaded: Loaded) -> Any:
        """Gives a base model with an attached update its generated class.

        Args:
            loaded: What `taia_hub.loading` made.

        Returns:
            The same model object, of a subclass of its base model's class.
        """
        model: Any = loaded.model
        mixin = TAIAForCausalLM if cls._taia_head else TAIAModel
        model.taia_config = loaded.config
        model._taia_switch = loaded.switch
        model._taia_update = loaded.update
        if isinstance(loaded.update, PeftUpdate):
            model.peft_config = loaded.update.peft_model.peft_config
            model._hf_peft_config_loaded = True  # Trainer: a quantised base with trainable adapters may be trained
        model.__class__ = subclass(mixin, type(model))
        return model

    @classmethod
    def _from_config(cls, config: Any, **kwargs: Any) -> Any:
        raise ConfigError(
            "A TAIA model cannot be made from a configuration alone: its weights are an update of a base model.",
            "Use `from_pretrained(repository)` or `from_adapter(base, adapter)`.",
        )

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModel") -> None:
        """Does nothing: a repository carries stubs that import this package, never copies of its modules.

        Args:
            auto_class: The Auto class, as transformers passes it after a load with `trust_remote_code=True`.
        """

    @property
    def inference_modules(self) -> str | dict[str, float]:
        """The setting of this loaded model: a mode name, roles joined by `+`, or a mapping of selectors to weights.

        Setting it changes neither a weight nor what `config.json` publishes. A block of `using` and the keyword of
        `forward` and `generate` override it.

        Raises:
            SettingError: When set to something else, or to what cannot act on this update.
        """
        return self._taia_switch.default.value

    @inference_modules.setter
    def inference_modules(self, value: Any) -> None:
        self._taia_switch.default = value

    @contextlib.contextmanager
    def using(self, inference_modules: Any) -> Iterator[Any]:
        """Puts a setting in force for a block, in this thread or task only.

        A thread that is started inside the block begins with the model's own setting: pass the keyword
        `inference_modules` to the call that runs there.

        Args:
            inference_modules: The setting.

        Yields:
            The model.

        Raises:
            SettingError: If the setting is not understood or cannot act on this update.

        Example:
            ```python
            with model.using("none"):
                base_logits = model(input_ids).logits
            ```
        """
        with self._taia_switch.hold(self._taia_switch.resolve(inference_modules)):
            yield self

    def status(self) -> SwitchStatus:
        """Returns which adapted modules act now, by role, with their weights and numbers of parameters."""
        return self._taia_switch.status()

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        *,
        is_main_process: bool = True,
        state_dict: Mapping[str, torch.Tensor] | None = None,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """Saves config.json, the full update, manifest, model card and stubs; the base model is not saved.

        The files are written beside the folder and moved, the manifest last: a failure leaves the folder as it was.

        Args:
            save_directory: The folder.
            is_main_process: Whether this process writes; the others do nothing.
            state_dict: State dict to take the update's tensors from, as Trainer passes it.
            push_to_hub: Whether to publish as well.
            **kwargs: Keywords of `push_to_hub` (with `repo_id`, by default the folder's name). Those that only matter
                for whole checkpoints (`save_function`, `safe_serialization`, `max_shard_size`) are accepted.

        Raises:
            RepositoryError: If the folder cannot be written.
            TypeError: If a keyword is unknown.
        """
        for name in _IGNORED_WHEN_SAVING:
            kwargs.pop(name, None)
        if kwargs and not push_to_hub:
            raise TypeError(f"save_pretrained() got unexpected keyword arguments {sorted(kwargs)}")
        if not is_main_process:
            return
        publishing.save(self, Path(save_directory), state_dict=state_dict)
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", Path(save_directory).name), **kwargs)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        tags: Sequence[str] | None = None,
    ) -> CommitInfo:
        """Publishes the TAIA repository in one commit: config, full update, manifest, card, stubs, tokenizer.

        A model card and tokenizer files that somebody else wrote into the repository stay as they are.

        Args:
            repo_id: The Hub id; the repository is made if need be.
            commit_message: First line of the commit.
            commit_description: The rest of its message.
            private: Whether a new repository is private.
            token: Access token; the stored one by default.
            revision: Branch to commit to; main by default.
            create_pr: Whether the commit becomes a pull request.
            tags: More tags for the model card.

        Returns:
            The commit, with its `oid`, `commit_url` and, for a pull request, `pr_url`.

        Raises:
            RepositoryError: If the base model is a local folder, or a request fails; the repository is then as it
                was before.
        """
        return publishing.push(
            self,
            repo_id,
            commit_message=commit_message,
            commit_description=commit_description,
            private=private,
            token=token,
            revision=revision,
            create_pr=create_pr,
            tags=_checked_tags(tags),
        )

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


class TAIAModel(TAIAMixin):
    """The backbone of a TAIA repository, without a head: what `AutoModel.from_pretrained` gives.

    Its hidden states are those inside `TAIAForCausalLM` bit for bit.

    Example:
        ```python
        import taia_hub
        from transformers import AutoModel

        model = AutoModel.from_pretrained("org/model-taia")
        ```
    """

    _taia_head = False


class TAIAForCausalLM(TAIAMixin):
    """The language model of a TAIA repository: what `AutoModelForCausalLM.from_pretrained` gives.

    Example:
        ```python
        import taia_hub
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained("org/model-taia")  # attention updates only: TAIA
        model.inference_modules = "all"  # the vanilla fine-tune
        ```
    """


def _checked_tags(tags: Sequence[str] | None) -> Sequence[str] | None:
    """Refuses one tag that is not in a list: its letters would become tags."""
    if isinstance(tags, str):
        raise ConfigError(f"tags={tags!r} is a text; a list of texts is expected.", f"Write tags=[{tags!r}].")
    return tags
