"""What a loaded model turns into: a repository, a plain adapter, a merged checkpoint."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taia_hub.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from huggingface_hub import CommitInfo

    from taia_hub.common.progress import Progress
    from taia_hub.exporting import ExportReport
    from taia_hub.merging import MergeReport
    from taia_hub.repository.loading import Loaded
    from taia_hub.switch.settings import InferenceModules

_IGNORED_WHEN_SAVING = ("save_function", "safe_serialization", "max_shard_size")


class Writing:
    """How a TAIA model is saved, published, exported and merged."""

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
        from taia_hub.repository import publishing

        publishing.save(_loaded(self), Path(save_directory), state_dict=state_dict)
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
        base: str | None = None,
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
            base: Hub id of the base model, where it is a folder here; the weights there must be the same.

        Returns:
            The commit, with its `oid`, `commit_url` and, for a pull request, `pr_url`.

        Raises:
            RepositoryError: If the base model is a local folder, or another one than `base`, or a request fails; the
                repository is then as it was before.
        """
        from taia_hub import hub
        from taia_hub.repository import publishing

        if isinstance(tags, str):  # its letters would become tags
            raise ConfigError(f"tags={tags!r} is a text; a list of texts is expected.", f"Write tags=[{tags!r}].")
        commit = hub.Commit(commit_message, commit_description, private, token, revision, create_pr)
        return publishing.push(_loaded(self), repo_id, commit, tags=tags or (), base=base)

    def export_adapter(
        self,
        folder: str | os.PathLike[str],
        inference_modules: InferenceModules = "attention",
        *,
        rank: int | None = None,
        max_error: float = 0.02,
        verify: bool = False,
        engines: Sequence[str] = (),
        token: str | bool | None = None,
        trust_remote_code: bool = False,
        progress: Progress | None = None,
    ) -> ExportReport:
        """Writes what a setting computes as a plain PEFT LoRA, which serving engines load.

        Made from the update's files, those of a model that was trained on from its present tensors; nothing of the
        model changes.

        Args:
            folder: A new or empty folder.
            inference_modules: The setting to export, whatever acts now.
            rank: As in `taia_hub.exporting.export_adapter`, and so are the others.
            max_error: See there.
            verify: See there.
            engines: See there.
            token: See there.
            trust_remote_code: See there.
            progress: See there.

        Returns:
            What was written, what was lost, and what each engine needs.

        Raises:
            TAIAError: As in `taia_hub.exporting.export_adapter`; nothing is left half-written.

        Example:
            ```python
            model.export_adapter("./attention-lora")
            PeftModel.from_pretrained(base, "./attention-lora")
            ```
        """
        from taia_hub import hub
        from taia_hub.exporting import ExportOptions, export_adapters
        from taia_hub.repository.loaded_update import files_of

        options = ExportOptions(rank, max_error, verify, tuple(engines), token, trust_remote_code, progress)
        with files_of(self, hub.HubAccess(token=token)) as files:
            return export_adapters(files, folder, {"": inference_modules}, options)[""]

    def merge(
        self,
        folder: str | os.PathLike[str],
        inference_modules: InferenceModules = "attention",
        *,
        dtype: str | torch.dtype | None = None,
        token: str | bool | None = None,
        trust_remote_code: bool = False,
        progress: Progress | None = None,
    ) -> MergeReport:
        """Writes a plain checkpoint of the base's class with the acting updates merged, shard by shard.

        Made from the base's files and the update's, as `taia merge` does it; nothing of the model changes, and its
        own weights are not read. To merge in memory, see `fuse`.

        Args:
            folder: A new or empty folder.
            inference_modules: The setting to merge, whatever acts now.
            dtype: As in `taia_hub.merging.merge`, and so are the others.
            token: See there.
            trust_remote_code: See there.
            progress: See there.

        Returns:
            What was merged and written.

        Raises:
            TAIAError: As in `taia_hub.merging.merge`; finished shards of an interrupted merge are used again.

        Example:
            ```python
            model.merge("./model-attention")
            AutoModelForCausalLM.from_pretrained("./model-attention")
            ```
        """
        from taia_hub import hub
        from taia_hub.merging import merge
        from taia_hub.repository.loaded_update import files_of

        with files_of(self, hub.HubAccess(token=token)) as files:
            return merge(
                files,
                folder,
                inference_modules,
                dtype=dtype,
                token=token,
                trust_remote_code=trust_remote_code,
                progress=progress,
            )


def _loaded(model: Any) -> Loaded:
    from taia_hub.repository.loading import Loaded

    return Loaded(model, model.taia_config, model._taia_update, model._taia_switch, model._taia_places)
