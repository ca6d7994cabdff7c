"""A TAIA repository from a base model and any adapter, without loading the base model's weights."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo

from taia_hub import hub
from taia_hub.errors import ConfigError, RepositoryError
from taia_hub.modeling_taia import TAIAForCausalLM
from taia_hub.repository import publishing
from taia_hub.repository.loading import LoadOptions, fetch_checkpoints, load_adapter, load_finetuned
from taia_hub.switch.settings import parse_setting
from taia_hub.switch.switch import SwitchStatus
from taia_hub.updates.dense.compressing import Compress, CompressionReport
from taia_hub.updates.dense.update import DenseReport
from taia_hub.updates.molora.authors import AUTHORS_EXPERTS, convert_authors


@dataclass(frozen=True)
class Created:
    """A repository that was made.

    Attributes:
        folder: The folder that it was written to, or None when it was published only.
        commit: The commit that it was published in, or None.
        status: The switch's status under the published setting.
        report: How a fine-tune differs from its base, or what compressing it lost; None for an adapter.
    """

    folder: Path | None
    commit: CommitInfo | None
    status: SwitchStatus
    report: DenseReport | CompressionReport | None = None


def create_repository(
    base: str,
    adapter: str,
    *,
    out: Path | None = None,
    push: str | None = None,
    inference_modules: Any = "attention",
    base_revision: str | None = None,
    adapter_revision: str | None = None,
    link: bool = False,
    convert_pickle: bool = False,
    private: bool | None = None,
    token: str | bool | None = None,
    trust_remote_code: bool = False,
) -> Created:
    """Makes a TAIA repository from a base model and an adapter; the adapter's bytes stay as they are.

    The base model is built without weights, which is enough to check that modules, names and shapes fit.

    Args:
        base: Hub id of the base model, or a folder (then it cannot be published).
        adapter: Hub id or folder of a PEFT adapter.
        out: Folder to write to.
        push: Hub id to publish to.
        inference_modules: The published default.
        base_revision: Revision of the base model.
        adapter_revision: Revision of the adapter.
        link: Whether the repository points to the adapter's own repository instead of holding a copy.
        convert_pickle: Whether pickled weights, of PEFT or of the authors' MoLoRA code, are converted to safetensors
            first; nothing in the pickle is run.
        private: Whether a new repository is private.
        token: Access token.
        trust_remote_code: Whether the base model's own code may run.

    Returns:
        What was made.

    Raises:
        TAIAError: If something is missing or does not fit; nothing is written or published then.
    """
    _check_targets(out, push)
    if not isinstance(inference_modules, list):  # pairs as config.json stores them
        parse_setting(inference_modules)
    with tempfile.TemporaryDirectory() as scratch:
        source, revision = adapter, adapter_revision
        if convert_pickle:
            where = _converted(adapter, adapter_revision, base, base_revision, token, Path(scratch))
            source, revision = str(where), None
        options = _skeleton_options(token, trust_remote_code)
        model = TAIAForCausalLM.from_loaded(
            load_adapter(base, source, base_revision, revision, inference_modules, options)
        )
        if link:
            model.taia_config.update = _pointer(adapter, adapter_revision, convert_pickle, token)
        if out is None:
            return Created(None, model.push_to_hub(str(push), private=private, token=token), model.status())
        tokenizer = Path(scratch) / "tokenizer"
        publishing.save_tokenizer(model.taia_config, tokenizer, token)  # first, because the Hub may not answer
        _save(model, out, token)
        if tokenizer.is_dir():
            shutil.copytree(tokenizer, out, dirs_exist_ok=True)
        return Created(out, None, model.status())


def create_from_finetuned(
    base: str,
    finetuned: str,
    *,
    out: Path | None = None,
    push: str | None = None,
    inference_modules: Any = None,
    base_revision: str | None = None,
    finetuned_revision: str | None = None,
    compress: Compress = None,
    private: bool | None = None,
    token: str | bool | None = None,
    trust_remote_code: bool = False,
) -> Created:
    """Makes a TAIA repository from a base model and a full fine-tune of it, reading both shard by shard.

    Args:
        base: Hub id of the base model, or a folder (then it cannot be published).
        finetuned: Hub id or folder of a checkpoint of the same architecture.
        out: Folder to write to.
        push: Hub id to publish to.
        inference_modules: The published default; `"attention+other"` for the tuned tensors themselves and
            `"attention"` where they are compressed.
        base_revision: Revision of the base model.
        finetuned_revision: Revision of the fine-tune.
        compress: As for `TAIAForCausalLM.from_finetuned`.
        private: Whether a new repository is private.
        token: Access token.
        trust_remote_code: Whether the base model's own code may run.

    Returns:
        What was made, and how the two differ or what compressing lost.

    Raises:
        TAIAError: If something is missing or does not fit; nothing is written or published then.
    """
    _check_targets(out, push)
    if inference_modules is not None and not isinstance(inference_modules, list):
        parse_setting(inference_modules)
    options = _skeleton_options(token, trust_remote_code)
    with hub.disk_errors(out or Path(tempfile.gettempdir())), _scratch(out) as scratch:
        one, other = fetch_checkpoints(base, finetuned, base_revision, finetuned_revision, options.access)
        folder = Path(scratch) / "update"
        loaded, report = load_finetuned(one, other, inference_modules, options, folder, compress)
        model = TAIAForCausalLM.from_loaded(loaded)
        tokenizer = Path(scratch) / "tokenizer"
        publishing.save_tokenizer(model.taia_config, tokenizer, token, source=other.folder)
        target = out or Path(scratch) / str(push).rpartition("/")[2]
        _save(model, target, token)
        if tokenizer.is_dir():
            shutil.copytree(tokenizer, target, dirs_exist_ok=True)
        commit = None
        if push:
            commit = publishing.push_folder(
                target, push, private=private, token=token, trust_remote_code=trust_remote_code
            )
        return Created(out, commit, model.status(), report)


def _save(model: Any, folder: Path, token: str | bool | None) -> None:
    config = model.taia_config
    fields = publishing.base_license(config, token) if config.base_model_revision else {}
    publishing.save(model, folder, license_fields=fields)


def _check_targets(out: Path | None, push: str | None) -> None:
    if bool(out) == bool(push):
        raise ConfigError(
            "Give either a folder to write to or a repository to push to.", "Use --out DIR or --push REPO."
        )


def _scratch(out: Path | None) -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(dir=_beside(out), prefix=".taia-dense-")


def _beside(out: Path | None) -> Path | None:
    """Returns the folder that `out` will lie in, where it is there: so that nothing is copied between disks."""
    parent = out.resolve().parent if out else None
    return parent if parent is not None and parent.is_dir() else None


def _skeleton_options(token: str | bool | None, trust_remote_code: bool) -> LoadOptions:
    return LoadOptions(
        autocast_adapter_dtype=False,
        access=hub.HubAccess(token=token),
        base_keywords={"trust_remote_code": trust_remote_code},
        skeleton=True,
    )


def _converted(
    adapter: str, revision: str | None, base: str, base_revision: str | None, token: str | bool | None, scratch: Path
) -> Path:
    """Writes pickled weights anew as safetensors: PEFT's, or a MoLoRA of the authors' code."""
    files = [hub.ADAPTER_CONFIG, hub.ADAPTER_WEIGHTS, hub.PICKLED_WEIGHTS, hub.CONFIG, AUTHORS_EXPERTS]
    source = hub.fetch(adapter, files, revision=revision, access=hub.HubAccess(token=token), what="adapter")
    if (source.folder / AUTHORS_EXPERTS).is_file():
        convert_authors(source.folder, scratch / "molora", base, base_revision=base_revision, token=token)
        return scratch / "molora"
    if not (source.folder / hub.PICKLED_WEIGHTS).is_file():
        raise RepositoryError(
            f"'{adapter}' has neither {hub.PICKLED_WEIGHTS} nor {AUTHORS_EXPERTS} to convert.",
            "Leave --convert-pickle out.",
        )
    hub.convert_pickled_adapter(source.folder, scratch / "adapter")
    return scratch / "adapter"


def _pointer(adapter: str, revision: str | None, converted: bool, token: str | bool | None) -> dict[str, Any]:
    source = hub.fetch(
        adapter, [hub.ADAPTER_CONFIG], revision=revision, access=hub.HubAccess(token=token), what="adapter"
    )
    if source.revision is None or converted:
        raise ConfigError(
            f"A link needs an adapter on the Hub in safetensors; '{adapter}' is "
            f"{'converted from a pickle' if converted else 'a folder'}.",
            "Leave --link out to publish a copy.",
        )
    return {"kind": "peft", "path": "", "repo": adapter, "revision": source.revision}
