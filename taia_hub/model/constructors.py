"""Where a loaded model comes from: a repository, a base model and an adapter, or two checkpoints."""

from __future__ import annotations

import atexit
import dataclasses
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Self

    from taia_hub.configuration_taia import TAIAConfig
    from taia_hub.repository.loading import Loaded
    from taia_hub.switch.settings import InferenceModules
    from taia_hub.updates.dense.compressing import Compress


def _kept_folder(prefix: str) -> Path:
    """Makes a temporary folder that lasts as long as the process."""
    folder = tempfile.mkdtemp(prefix=prefix)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


class Loading:
    """The constructors of a TAIA model."""

    _taia_head: bool = True

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        config: TAIAConfig | None = None,
        revision: str | None = None,
        inference_modules: InferenceModules | None = None,
        verify: bool = True,
        is_trainable: bool = False,
        autocast_adapter_dtype: bool = True,
        **kwargs: Any,
    ) -> Self:
        """Loads a TAIA repository, or a plain PEFT adapter on the base model that it names.

        Args:
            pretrained_model_name_or_path: Folder or Hub id.
            config: The configuration, where transformers has read it already.
            revision: Revision of the TAIA repository; the base model's stands in `config.json`.
            inference_modules: The setting to begin with; by default the published one, or `"all"` when
                `is_trainable`. It does not change what `config.json` publishes.
            verify: Whether the weights are checked against `taia_manifest.json`.
            is_trainable: Whether the update's parameters get gradients, as for transformers' Trainer, whose checkpoints
                then are TAIA repositories.
            autocast_adapter_dtype: Whether 16-bit adapter weights become float32, as PEFT does by default.
            **kwargs: `token`, `cache_dir`, `local_files_only`, `force_download` for the Hub; everything else, such as
                `dtype`, `device_map`, `attn_implementation`, `quantization_config`, for the base model. LoRA layers on
                quantised weights keep PEFT's forward and are switched as a whole.

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
        from taia_hub.repository.loading import LoadOptions, load_repository

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
        inference_modules: InferenceModules = "attention",
        is_trainable: bool = False,
        autocast_adapter_dtype: bool = True,
        refine: str | None = None,
        **kwargs: Any,
    ) -> Self:
        """Puts any PEFT adapter on its base model, with a switch.

        Args:
            base: Folder or Hub id of the base model.
            adapter: Folder or Hub id of the adapter, trained by PEFT or saved by it; `"org/lora@name"` or `subfolder=`
                where it lies in a folder of its repository.
            base_revision: Revision of the base; by default the one that the adapter names, else the main branch. The
                commit that it points to goes into `config.json`.
            adapter_revision: Revision of the adapter.
            inference_modules: The published default, and the setting to begin with.
            is_trainable: Whether the update's parameters get gradients; the model then begins with `"all"`, so that
                the whole update is trained, whatever is published.
            autocast_adapter_dtype: Whether 16-bit adapter weights become float32, as PEFT does by default.
            refine: `"norm"` cuts each matrix of a LoRA to the components that lie nearest to the base weight before it
                is put on the model (NoRM, ICLR 2025). Saving keeps what came of it.
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
        from taia_hub.repository.loading import LoadOptions, load_adapter, load_refined
        from taia_hub.repository.refined import parse_refine

        method = parse_refine(refine, dense=False)
        options = LoadOptions.split(
            kwargs,
            head=cls._taia_head,
            is_trainable=is_trainable,
            autocast_adapter_dtype=autocast_adapter_dtype,
        )
        first = options if method is None else dataclasses.replace(options, skeleton=True, is_trainable=False)
        loaded = load_adapter(
            os.fspath(base), os.fspath(adapter), base_revision, adapter_revision, inference_modules, first
        )
        if method is not None:
            loaded = load_refined(loaded, _kept_folder("taia-refined-"), options)
        return cls.from_loaded(loaded)

    @classmethod
    def from_finetuned(
        cls,
        base: str | os.PathLike[str],
        finetuned: str | os.PathLike[str],
        *,
        base_revision: str | None = None,
        finetuned_revision: str | None = None,
        inference_modules: InferenceModules | None = None,
        compress: Compress = None,
        refine: str | None = None,
        **kwargs: Any,
    ) -> Self:
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
            refine: `"dg-hard"` cuts each matrix of the difference to what stands out from its noise (arXiv 2605.20296);
                mode `"all"` is then no more the fine-tune.
            **kwargs: As in `from_pretrained`.

        Returns:
            The model, of a subclass of its base model's class. In mode `"none"` it is the base and, unless compressed
            or refined, in mode `"all"` the fine-tune, bit for bit.

        Raises:
            TAIAError: If one is missing or damaged, they are not of one family, or they do not differ.

        Example:
            ```python
            model = TAIAForCausalLM.from_finetuned("org/base", "org/base-instruct")
            ```
        """
        from taia_hub.repository.loading import LoadOptions, fetch_checkpoints, load_finetuned
        from taia_hub.repository.refined import parse_refine

        method = parse_refine(refine, dense=True, compress=compress)
        options = LoadOptions.split(kwargs, head=cls._taia_head, autocast_adapter_dtype=False)
        one, other = fetch_checkpoints(
            os.fspath(base), os.fspath(finetuned), base_revision, finetuned_revision, options.access
        )
        scratch = _kept_folder("taia-dense-")
        loaded, _ = load_finetuned(one, other, inference_modules, options, scratch, compress, method)
        return cls.from_loaded(loaded)

    @classmethod
    def from_loaded(cls, loaded: Loaded) -> Any:
        """Gives a base model with an attached update its generated class, as `TAIAMixin` does."""
        raise NotImplementedError
