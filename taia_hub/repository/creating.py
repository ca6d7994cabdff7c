"""A TAIA repository from a base model and any adapter, without loading the base model's weights."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo
from transformers import PreTrainedModel

from taia_hub import hub
from taia_hub.common.progress import Progress
from taia_hub.common.resuming import Made, digest
from taia_hub.errors import ConfigError, RepositoryError, TAIAError
from taia_hub.hub.config import RepositoryConfig, config_values, is_taia
from taia_hub.refining.report import Method, Refinement
from taia_hub.repository import publishing
from taia_hub.repository.loading import (
    Loaded,
    LoadOptions,
    fetch_checkpoints,
    load_adapter,
    load_finetuned,
    load_refined,
    load_repository,
)
from taia_hub.repository.reading import base_license
from taia_hub.repository.refined import parse_refine, refinement_of
from taia_hub.repository.tokenizer import copy_tokenizer, save_tokenizer
from taia_hub.repository.update_files import own_tokenizer, parted
from taia_hub.switch.settings import InferenceModules, parse_setting
from taia_hub.switch.switch import SwitchStatus
from taia_hub.updates.dense.compressing import Compress, CompressionReport
from taia_hub.updates.dense.difference import DenseReport
from taia_hub.updates.molora.authors import AUTHORS_EXPERTS, convert_authors


@dataclass(frozen=True)
class Created:
    """A repository that was made; its folder is None where it was published only, its commit where it was only written.

    `status` is the switch's under the published setting; `report` says how a fine-tune differs from its base, or what
    compressing it lost, and is None for an adapter; `refinement` says what was kept of a refined update. Where `is_new`
    is False, this very repository lay there already.
    """

    folder: Path | None
    commit: CommitInfo | None
    status: SwitchStatus
    report: DenseReport | CompressionReport | None = None
    is_new: bool = True
    refinement: Refinement | None = None


def create_repository(
    base: str | hub.Source | None,
    adapter: str,
    *,
    out: Path | None = None,
    push: str | None = None,
    inference_modules: InferenceModules = "attention",
    base_revision: str | None = None,
    adapter_revision: str | None = None,
    link: bool = False,
    convert_pickle: bool = False,
    refine: Method | str | None = None,
    commit: hub.Commit | None = None,
    trust_remote_code: bool = False,
    skeleton: PreTrainedModel | None = None,
    extra_files: Callable[[Path], None] | None = None,
    keep: Path | None = None,
    progress: Progress | None = None,
    overwrite: bool = False,
) -> Created:
    """Makes a TAIA repository from a base model and an adapter; the adapter's bytes stay as they are.

    The base model is built without weights, which is enough to check that modules, names and shapes fit.

    `base` is a Hub id, a folder (then it cannot be published), what `hub.resolve_base` gave, or None for the one that
    the adapter names; either `out` or `push` is given. With `link` the repository points to the adapter's own
    repository instead of holding a copy. With `convert_pickle` pickled weights, of PEFT or of the authors' MoLoRA code,
    become safetensors first; nothing in the pickle is run. With `refine="norm"` each matrix of a LoRA is cut to the
    components that lie nearest to the base weight (`taia_hub.refining.norm`), whose weights are read for it, and
    fetched where the base is on the Hub; `Created.refinement` and `taia_refinement.json` say what was kept.

    A `skeleton`, the base model on the meta device where it was built already, is used up. `extra_files` is as of
    `publishing.save`, `keep` as of `publishing.push`. Nothing is written or published where something does not fit.
    """
    _check_targets(out, push)
    method = parse_refine(refine, dense=False)
    if method and link:
        raise ConfigError(
            "A link points to the adapter as it is, and a refined one has other weights.",
            "Leave --link or --refine out.",
        )
    if not isinstance(inference_modules, list):  # pairs as config.json stores them
        parse_setting(inference_modules).resolved()
    commit = commit or hub.Commit()
    access = hub.HubAccess(token=commit.token)
    with tempfile.TemporaryDirectory() as scratch, _arguments_recognised(base, adapter, adapter_revision, access):
        source, revision = adapter, adapter_revision
        if convert_pickle:
            source, revision = str(_converted(adapter, revision, base, base_revision, access, Path(scratch))), None
        options = _skeleton_options(access, trust_remote_code, skeleton)
        loaded = load_adapter(base, source, base_revision, revision, inference_modules, options)
        if link:
            _check_linkable(loaded)
            loaded.config.update = _pointer(adapter, adapter_revision, convert_pickle, access)
        made = Made(out, _asked_of(loaded, method)) if out is not None and extra_files is None else None
        if made:
            if made.facts() is not None:
                status = loaded.switch.status()
                return Created(made.folder, None, status, is_new=False, refinement=refinement_of(made.folder))
            _refuse_another(made.folder, overwrite)
        if method:
            again = dataclasses.replace(options, skeleton=True)  # the first one is used up
            loaded = load_refined(loaded, Path(scratch) / "refined", again, progress)
        created = _finish(loaded, out, push, commit, extra_files, keep, trust_remote_code)
        if made:
            _mark(made)
        return created


def create_from_finetuned(
    base: str | hub.Source,
    finetuned: str,
    *,
    out: Path | None = None,
    push: str | None = None,
    inference_modules: InferenceModules | None = None,
    base_revision: str | None = None,
    finetuned_revision: str | None = None,
    compress: Compress = None,
    refine: Method | str | None = None,
    commit: hub.Commit | None = None,
    trust_remote_code: bool = False,
    skeleton: PreTrainedModel | None = None,
    extra_files: Callable[[Path], None] | None = None,
    keep: Path | None = None,
    progress: Progress | None = None,
    overwrite: bool = False,
) -> Created:
    """Makes a TAIA repository from a base model and a full fine-tune of it, reading both shard by shard.

    The published default is `"attention+other"` for the tuned tensors themselves and `"attention"` where they are
    compressed, which goes as for `TAIAForCausalLM.from_finetuned`; everything else is as of `create_repository`. With
    `refine="dg-hard"` each matrix of the difference is cut to what stands out from its noise
    (`taia_hub.refining.dg_hard`).
    """
    _check_targets(out, push)
    method = parse_refine(refine, dense=True, compress=compress)
    if inference_modules is not None and not isinstance(inference_modules, list):
        parse_setting(inference_modules).resolved()
    commit = commit or hub.Commit()
    options = _skeleton_options(hub.HubAccess(token=commit.token), trust_remote_code, skeleton)
    # beside the folder that it will lie in, so that nothing is copied between disks
    target = out or keep
    beside = target.resolve().parent if target and target.resolve().parent.is_dir() else None
    with (
        hub.disk_errors(target or Path(tempfile.gettempdir())),
        tempfile.TemporaryDirectory(dir=beside, prefix=".taia-dense-") as scratch,
    ):
        one, other = fetch_checkpoints(base, finetuned, base_revision, finetuned_revision, options.access)
        asked = [hub.base_print(one), hub.base_print(other), compress, str(inference_modules), *_named(method)]
        made = Made(out, {"command": "create", "from": digest(asked)}) if out else None
        if made and made.facts() is not None:
            there = load_repository(
                str(out), None, None, _skeleton_options(options.access, trust_remote_code, skeleton)
            )
            status = there.switch.status()
            return Created(out, None, status, is_new=False, refinement=refinement_of(made.folder))
        if made:
            _refuse_another(made.folder, overwrite)
        folder = Path(scratch) / "update"
        loaded, report = load_finetuned(one, other, inference_modules, options, folder, compress, method, progress)
        created = _finish(loaded, out, push, commit, extra_files, keep, trust_remote_code)
        if made:
            _mark(made)
        return dataclasses.replace(created, report=report)


def _finish(
    loaded: Loaded,
    out: Path | None,
    push: str | None,
    commit: hub.Commit,
    extra_files: Callable[[Path], None] | None,
    keep: Path | None,
    trust_remote_code: bool,
) -> Created:
    """Writes a repository with its tokenizer, or publishes it."""
    config, token = loaded.config, commit.token

    def beside(folder: Path) -> None:
        if extra_files is not None:
            extra_files(folder)
        own = own_tokenizer(loaded.places)
        if (push is None or own) and not (folder / hub.TOKENIZER_CONFIG).is_file():
            save_tokenizer(config, folder, token, own=own, trust_remote_code=trust_remote_code)

    if out is None:
        done = publishing.push(loaded, str(push), commit, extra_files=beside, keep=keep)
        return Created(None, done, loaded.switch.status(), refinement=refinement_of(loaded.update.source))
    fields = base_license(config, token) if config.base_model_revision else {}
    publishing.save(loaded, out, license_fields=fields, extra_files=beside)
    return Created(out, None, loaded.switch.status(), refinement=refinement_of(loaded.update.source))


def _asked_of(loaded: Loaded, method: Method | None) -> dict[str, Any]:
    """Returns what a repository of an adapter is made of, as JSON values."""
    config, update = loaded.config, loaded.update
    files = [hub.sha256(update.source / name) for name in (update.kind.config, update.kind.weights)]
    parts = [config.base_model_name_or_path, config.base_model_revision, config.update, str(config.inference_modules)]
    parts += _named(method)
    if config.base_model_revision is None:  # its tokenizer and settings of generation come along
        parts.append(hub.folder_print(Path(config.base_model_name_or_path or ""), hub.ANSWER_PARTS))
    if own := own_tokenizer(loaded.places):  # it comes along, too
        parts.append(hub.folder_print(own.folder, hub.ANSWER_PARTS))
    return {"command": "create", "from": digest([*parts, *files])}


def _named(method: Method | None) -> list[str]:
    """Returns what tells a refined repository from others, whose marks have nothing of it."""
    return [] if method is None else [method.value]


def _refuse_another(out: Path, overwrite: bool) -> None:
    """Refuses a folder that holds another TAIA repository, unless that may be replaced."""
    if not overwrite and is_taia(config_values(out)):
        raise RepositoryError(
            f"'{out}' holds another TAIA repository.",
            "Replace it with --overwrite (overwrite=True), which keeps what you put beside it, or give a new folder.",
        )


def _mark(made: Made) -> None:
    """Writes down what a repository was made of; its card and what lies beside it may change."""
    config = RepositoryConfig.of(config_values(made.folder))
    updates = (
        hub.update_weights(made.folder / config.place.path, config.place.kind) if "repo" not in config.update else {}
    )
    names = [config.place.named(name) for name in (config.place.kind.config, *updates)] if updates else []
    hashes = {}
    if updates and config.place.kind.shards:  # its index knows them: many gigabytes are not read once more
        metadata = hub.read_json(made.folder / config.place.weights).get("metadata")
        found = metadata.get("sha256") if isinstance(metadata, dict) else None
        hashes = {config.place.named(name): one for name, one in found.items()} if isinstance(found, dict) else {}
    made.mark([hub.CONFIG, *names], hashes)


def _check_targets(out: Path | None, push: str | None) -> None:
    if bool(out) == bool(push):
        raise ConfigError(
            "Give either a folder to write to or a repository to push to.", "Use --out DIR or --push REPO."
        )


def _skeleton_options(access: hub.HubAccess, trust_remote_code: bool, skeleton: PreTrainedModel | None) -> LoadOptions:
    return LoadOptions(
        autocast_adapter_dtype=False,
        access=access,
        base_keywords={"trust_remote_code": trust_remote_code},
        skeleton=True if skeleton is None else skeleton,
    )


@contextlib.contextmanager
def _arguments_recognised(
    base: str | hub.Source | None, adapter: str, revision: str | None, access: hub.HubAccess
) -> Iterator[None]:
    """Says of arguments that were swapped, or that name a whole model, what to type instead."""
    try:
        yield
    except (RepositoryError, ConfigError) as error:
        first = _what_is(base, None, access) if isinstance(base, str) else ""
        second = _what_is(adapter, revision, access)
        if second != "model":
            raise
        if first in ("adapter", "taia"):
            raise ConfigError(
                f"'{base}' is {'an adapter' if first == 'adapter' else 'a TAIA repository'} and '{adapter}' a whole "
                "model: the base comes first.",
                f"Type `taia create {adapter} {base}`." if first == "adapter" else "Name a base model and an adapter.",
            ) from error
        raise ConfigError(
            f"'{adapter}' is a whole model, and an adapter belongs there.",
            f"A full fine-tune becomes a repository by --dense: `taia create {base or 'BASE'} {adapter} --dense`.",
        ) from error


def _what_is(name: str, revision: str | None, access: hub.HubAccess) -> str:
    """Tells whether a name is that of an adapter, a TAIA repository or a whole model; empty where it cannot be told."""
    try:
        folder = hub.fetch(name, (hub.CONFIG, hub.ADAPTER_CONFIG), revision=revision, access=access).folder
        values = config_values(folder)
    except TAIAError:
        return ""
    if is_taia(values):
        return "taia"
    return "adapter" if (folder / hub.ADAPTER_CONFIG).is_file() else "model" if values else ""


def _converted(
    adapter: str,
    revision: str | None,
    base: str | hub.Source | None,
    base_revision: str | None,
    access: hub.HubAccess,
    scratch: Path,
) -> Path:
    """Writes pickled weights anew as safetensors: PEFT's, or a MoLoRA of the authors' code."""
    files = [hub.ADAPTER_CONFIG, hub.ADAPTER_WEIGHTS, hub.PICKLED_WEIGHTS, hub.CONFIG, AUTHORS_EXPERTS]
    files += hub.TOKENIZER_FILES
    name, inside = parted(adapter)
    files = [f"{inside}/{file}".lstrip("/") for file in files]
    source = hub.fetch(name, files, revision=revision, access=access, what="adapter")
    source = hub.Source(adapter, source.folder / inside, source.revision)
    made = scratch / ("molora" if (source.folder / AUTHORS_EXPERTS).is_file() else "adapter")
    copy_tokenizer(source, made)
    if (source.folder / AUTHORS_EXPERTS).is_file():
        if base is None:
            raise ConfigError(
                f"'{adapter}' is a checkpoint of the authors' MoLoRA code, which fixes no base model.",
                f"Name it: `taia create BASE {adapter} --convert-pickle`.",
            )
        name, at = (base.name, base.revision) if isinstance(base, hub.Source) else (base, base_revision)
        convert_authors(source.folder, made, name, base_revision=at, token=access.token)
        return made
    if not (source.folder / hub.PICKLED_WEIGHTS).is_file():
        raise RepositoryError(
            f"'{adapter}' has neither {hub.PICKLED_WEIGHTS} nor {AUTHORS_EXPERTS} to convert.",
            "Leave --convert-pickle out.",
        )
    hub.convert_pickled_adapter(source.folder, made)
    return made


def _check_linkable(loaded: Loaded) -> None:
    """Refuses to point to files that only this package reads on their base."""
    fit = getattr(loaded.update, "fit", None)
    if fit is not None and (fit.changes or not fit.has_its_names):
        raise ConfigError(
            "The adapter's files are of another class of the model, or of an older PEFT, and a link would publish them "
            "as they are.",
            "Leave --link out: a copy has the names of its base.",
        )


def _pointer(adapter: str, revision: str | None, converted: bool, access: hub.HubAccess) -> dict[str, Any]:
    name, inside = parted(adapter)
    source = hub.fetch(name, [f"{inside}/{hub.ADAPTER_CONFIG}".lstrip("/")], revision=revision, access=access)
    if source.revision is None or converted:
        raise ConfigError(
            f"A link needs an adapter on the Hub in safetensors; '{adapter}' is "
            f"{'converted from a pickle' if converted else 'a folder'}.",
            "Leave --link out to publish a copy.",
        )
    return {"kind": "peft", "path": inside, "repo": name, "revision": source.revision}
