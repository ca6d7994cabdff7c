"""From a name to an opened repository: which update it holds, where its files are, and which base it belongs to."""

from __future__ import annotations

import dataclasses
import logging
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from taia_hub import hub
from taia_hub.errors import ConfigError, RepositoryError
from taia_hub.hub.config import Fields, RepositoryConfig, config_values, is_taia
from taia_hub.hub.layout import KINDS, PEFT, UpdateKind, UpdatePlace, find_kind
from taia_hub.repository.reading import base_name, read_repository_config, verify_update
from taia_hub.repository.stubs import check_stubs

logger = logging.getLogger(__name__)

_PLACES = tuple(UpdatePlace(kind, folder) for kind in KINDS.values() for folder in ("", kind.folder))


def _described(place: UpdatePlace) -> tuple[str, ...]:
    """Returns the paths of the small files that say what an update is, and whether it has a tokenizer of its own."""
    small = (place.config, place.named(hub.TOKENIZER_CONFIG))
    return (*small, place.weights) if place.kind.shards else small


_FIRST = (hub.CONFIG, hub.MANIFEST, hub.GENERATION, *(name for place in _PLACES for name in _described(place)))


@dataclass(frozen=True)
class Repository:
    """A TAIA repository, or an update in a folder of its own, and the base model that it belongs to.

    Attributes:
        config: Configuration of the TAIA repository; of a plain update, what one of it would say.
        holder: Where the update's files lie: the repository, or the one that it points to.
        base: The base model; only its configuration is on this disk.
        is_plain: Whether it is an update without a TAIA repository.
    """

    name: str
    revision: str | None
    config: Fields
    root: Path
    holder: hub.Source
    place: UpdatePlace
    base: hub.Source
    is_plain: bool = False

    @property
    def kind(self) -> UpdateKind:
        """The kind of update."""
        return self.place.kind

    @property
    def folder(self) -> Path:
        """Folder with the update's files."""
        return self.holder.folder / self.place.path

    @cached_property
    def settings(self) -> Any:
        """What the update's own configuration file says, of a class that the kind has."""
        from taia_hub.updates.attaching import read_update_config  # here, because a card is checked without PEFT

        return read_update_config(self.folder, self.kind)

    @property
    def method(self) -> str:
        """Name of the update's method, as in `"LORA"`."""
        if self.kind is not PEFT:
            return self.kind.name.upper()
        return str(hub.read_json(self.folder / self.kind.config).get("peft_type"))

    @property
    def places(self) -> tuple[hub.Source, ...]:
        """Where its own tokenizer may lie, for `own_tokenizer`: the repository, then its adapter."""
        own = hub.Source(self.holder.name if self.is_plain else self.name, self.root, self.revision)
        return own, hub.Source(self.holder.name, self.folder, self.holder.revision)

    @property
    def generation(self) -> Path | None:
        """Its settings of generation, else its base model's; None where there are none."""
        paths = (folder / hub.GENERATION for folder in (self.root, self.base.folder))
        return next((path for path in paths if path.is_file()), None)

    @property
    def features_only(self) -> bool:
        """Whether the update is of a model without its language-modelling head."""
        from taia_hub.updates.peft.strict import is_of_backbone  # here, because it needs PEFT

        return self.kind is PEFT and is_of_backbone(self.settings)

    def with_weights(self, access: hub.HubAccess, *, verify: bool = True) -> Repository:
        """Brings the update's weights to this disk, whole and, where `verify`, as the manifest says."""
        holder = _brought(self.holder, self.place, self.place.files, access)
        if self.is_plain:
            hub.update_weights(holder.folder / self.place.path, self.kind)
        else:
            verify_update(self.root, holder.folder / self.place.path, self.config, verify=verify)
        return dataclasses.replace(self, holder=holder).with_tokenizer(access)

    def with_tokenizer(self, access: hub.HubAccess) -> Repository:
        """Brings its own tokenizer or its adapter's to this disk, so that it is here as long as the weights are."""
        own = own_tokenizer(self.places)
        if own and own.revision:
            hub.fetch(own.name, hub.TOKENIZER_FILES, revision=own.revision, access=access, local=False)
        return self

    def check_outside(self, out: Path) -> None:
        """Refuses to write into a folder that is read from, which would be published with what is in it."""
        read = {self.name: None if self.revision else self.root}
        read[self.base.name] = None if self.base.revision else self.base.folder
        for name, folder in read.items():
            if folder is not None and out.resolve().is_relative_to(folder.resolve()):
                raise RepositoryError(
                    f"'{out}' lies inside '{name}', from which it is made, and would be published with it.",
                    "Give a folder beside it.",
                )


def own_tokenizer(places: Iterable[hub.Source]) -> hub.Source | None:
    """Finds the first place with a tokenizer, of `Repository.places`; None where it is the base model's.

    Every tokenizer that transformers saved has the file that is asked for; older ones only bases have.
    """
    return next((place for place in places if (place.folder / hub.TOKENIZER_CONFIG).is_file()), None)


def open_repository(
    name: str | os.PathLike[str],
    access: hub.HubAccess,
    *,
    revision: str | None = None,
    base: str | hub.Source | None = None,
    base_revision: str | None = None,
    config: Fields | None = None,
    plain: bool = True,
    what: str = "TAIA repository or adapter",
) -> Repository:
    """Opens a TAIA repository, or a plain PEFT adapter or other update in a folder of its own, without its weights.

    Some kilobytes are fetched; `Repository.with_weights` brings the rest.

    `base` is given where it is not the one that is named there, or as it was resolved. `base_revision` is by default
    the one that an adapter names, or a repository for a base of that name. `plain` says whether a plain update is taken
    too, `what` how messages call it. `NAME@FOLDER` is the update in a folder of a repository, where PEFT keeps an
    adapter that has a name of its own.
    """
    name, inside = parted(name)
    if inside:
        if not plain or config is not None:
            raise ConfigError(f"'{name}@{inside}' names a part of a repository.", f"Name the repository: '{name}'.")
        source = hub.fetch(name, in_folder(inside), revision=revision, access=access, what=what)
        return _plain(f"{name}@{inside}", source, base, base_revision, access, inside)
    source = hub.fetch(name, _FIRST, revision=revision, access=access, what=what if plain else "TAIA repository")
    is_plain = (source.folder / find_kind(source.folder).config).is_file() and not is_taia(config_values(source.folder))
    if plain and config is None and not is_plain and (only := _only_inside(source)):
        logger.warning("'%s' holds no adapter itself: the one in '%s' is taken.", name, only.name)
        name, source, is_plain = only.name, only, True
    if config is None and plain and is_plain:
        return _plain(name, source, base, base_revision, access)
    if config is None:
        if not (source.folder / hub.CONFIG).is_file():
            raise _nothing_there(name, source, plain, access)
        config = read_repository_config(source.folder / hub.CONFIG, name)
    check_stubs(source.folder)
    if base is None:
        where = _recorded_base(name, source, base_name(config, name), config.base_model_revision, access)
    else:
        recorded = config.base_model_name_or_path
        revision = base_revision or (config.base_model_revision if base == recorded else None)
        where = _given_base(name, base, revision, recorded, access)
        config = RepositoryConfig(where.name, where.revision, config.inference_modules, config.update)
    holder = _holder(source, config, access)
    opened = Repository(name, source.revision, config, source.folder, holder, config.place, where)
    if not (opened.folder / opened.kind.config).is_file():
        hub.update_weights(opened.folder, opened.kind)  # says what is missing
    return opened


def parted(name: str | os.PathLike[str]) -> tuple[str, str]:
    """Parts `NAME@FOLDER` into the repository and the folder in it, which is empty where a whole one is named.

    Raises:
        ConfigError: If the folder leads out of the repository.
    """
    name = os.fspath(name)
    repository, at, inside = name.rpartition("@")
    if not at or os.path.isdir(name):
        return name, ""
    inside = inside.strip("/")
    if not repository or not inside or {"", ".", ".."} & set(inside.split("/")) or re.search(r"[\\*?\[\]:]", inside):
        raise ConfigError(f"'{name}' names no folder of a repository.", "Write it as in 'org/lora@checkpoint-500'.")
    return repository, inside


def in_folder(inside: str) -> list[str]:
    """Returns globs on what describes an update in a folder of a repository, and on its tokenizer."""
    names = [name for kind in KINDS.values() for name in _described(UpdatePlace(kind, ""))]
    return [f"{inside}/{name}" for name in (*names, *hub.TOKENIZER_FILES)]


def _plain(
    name: str,
    source: hub.Source,
    base: str | hub.Source | None,
    base_revision: str | None,
    access: hub.HubAccess,
    inside: str = "",
) -> Repository:
    """Opens an update that lies in a folder of its own, and says what `config.json` of a repository of it would.

    `inside` is its folder in `source`.
    """
    from taia_hub.updates.attaching import base_of, read_update_config  # here, because they need PEFT

    folder = source.folder / inside
    kind = find_kind(folder)
    if not (folder / kind.config).is_file():
        raise _nothing_there(source.name, source, True, access)
    recorded, fixed = base_of(read_update_config(folder, kind))
    if base is not None:
        # A revision is one of the base that the adapter names; of another model the same name says something else.
        where = _given_base(name, base, base_revision or (fixed if base == recorded else None), recorded, access)
    elif recorded:
        where = _recorded_base(name, source, recorded, base_revision or fixed, access)
    else:
        raise ConfigError(
            f"'{name}' names no base model.",
            f"Make a repository of both with `taia create BASE {name}`, say which one it belongs to (`base`, --base), "
            "or load it with `TAIAForCausalLM.from_adapter(base, adapter)`.",
        )
    at = where.name if where.revision else str(where.folder.resolve())
    config = RepositoryConfig(at, where.revision, "attention", {"kind": kind.name, "path": kind.folder})
    return Repository(name, source.revision, config, folder, source, UpdatePlace(kind, inside), where, is_plain=True)


def _recorded_base(name: str, source: hub.Source, base: str, revision: str | None, access: hub.HubAccess) -> hub.Source:
    """Finds the base model that a repository or adapter names, at its commit; one of the Hub names no folder here."""
    if source.revision is not None and (hub.is_path(base) or (os.path.isdir(base) and not revision)):
        raise RepositoryError(
            f"'{name}' on the Hub names '{base}' as its base model, which can only be a folder of its author's.",
            "Name the base model that it belongs to (`base`, --base), or load it with "
            "`TAIAForCausalLM.from_adapter(base, adapter)`.",
        )
    if revision and os.path.isdir(base):
        raise RepositoryError(
            f"The base model '{base}' is fixed at a commit on the Hub, but a folder here has the same name and "
            "would be taken for it.",
            "Rename the folder, or work in another one.",
        )
    return hub.resolve_base(base, revision, access)


def _given_base(
    name: str, base: str | hub.Source, revision: str | None, recorded: str | None, access: hub.HubAccess
) -> hub.Source:
    """Finds the base model that was given, and says where an update was made for another one."""
    given = base.name if isinstance(base, hub.Source) else base
    if recorded and recorded != given:
        logger.warning("The adapter '%s' was made for '%s' and is put on '%s'.", name, recorded, given)
    return base if isinstance(base, hub.Source) else hub.resolve_base(base, revision, access)


def _only_inside(source: hub.Source) -> hub.Source | None:
    """Finds the one update in a sub-folder of a folder that holds nothing else to open, as trainings leave it."""
    if source.revision is not None or (source.folder / hub.CONFIG).is_file():
        return None
    paths = source.folder.glob("*/*_config.json")
    inside = _updates_inside(path.relative_to(source.folder).as_posix() for path in paths)
    if len(inside) != 1:
        return None
    return hub.Source(os.path.join(source.name, inside[0]), source.folder / inside[0], None)


def _updates_inside(files: Iterable[str]) -> list[str]:
    """Returns the folders that hold the configuration of an update, of the paths in a repository."""
    configs = {kind.config for kind in KINDS.values()}
    parts = (path.rpartition("/") for path in files)
    return sorted({folder for folder, _, name in parts if folder and name in configs})


def _nothing_there(name: str, source: hub.Source, plain: bool, access: hub.HubAccess) -> RepositoryError:
    if source.revision is None:
        found = (path for depth in ("*", "*/*") for path in source.folder.glob(f"{depth}/*_config.json"))
        files = [path.relative_to(source.folder).as_posix() for path in found]
    else:
        files = sorted(hub.names_at(source, access))
    inside = _updates_inside(files)
    if inside and plain:
        is_local = source.revision is None
        return RepositoryError(
            f"'{name}' holds no adapter itself, but has some in {', '.join(map(repr, inside[:5]))}.",
            f"Name one of them: '{name}{'/' if is_local else '@'}{inside[-1]}'.",
        )
    if plain:
        seen = hub.seen_in(files) if files else hub.seen_folder(source.folder) if source.revision is None else None
        said, hint = seen or ("", "")
        hint = f"{hint} Give a TAIA repository, or the repository or folder of a PEFT adapter.".lstrip()
        return RepositoryError(
            f"'{name}' holds neither a {hub.CONFIG} nor an {hub.ADAPTER_CONFIG}{said and f': it is {said}'}.", hint
        )
    return RepositoryError(
        f"'{name}' is no TAIA repository: it has no {hub.CONFIG}.",
        f"Make one of a PEFT adapter: `taia create {name} --out DIR`.",
    )


def _holder(source: hub.Source, config: Fields, access: hub.HubAccess) -> hub.Source:
    """Finds where an update's files lie, and brings what describes it here, where that was not fetched yet."""
    holder, place = source, config.place
    if repo := config.update.get("repo"):
        holder = hub.Source(repo, source.folder, config.update["revision"])
    if holder is source and place in _PLACES:
        return source
    return _brought(holder, place, _described(place), access)


def _brought(holder: hub.Source, place: UpdatePlace, names: tuple[str, ...], access: hub.HubAccess) -> hub.Source:
    """Fetches files of an update; weights that were left on the Hub because they are pickled are named as the reason.

    Whether the files are there is not checked.
    """
    if holder.revision is None:
        return holder
    what = "adapter repository"
    found = hub.fetch(holder.name, names, revision=holder.revision, access=access, what=what, local=False)
    if place.weights in names and not (found.folder / place.weights).is_file():
        pickled = place.named(hub.PICKLED_WEIGHTS)
        if hub.has_file(found, pickled, access, what=what):
            raise RepositoryError(
                f"'{holder.name}' holds pickled weights ({pickled}), which can run code when they are loaded; "
                "only safetensors are read.",
                "Convert them with `taia create BASE ADAPTER --convert-pickle --out DIR`.",
            )
        if hub.may_lack(found, place.weights, access):
            raise hub.not_cached(f"'{place.weights}' of '{holder.name}'", holder.name, holder.revision)
    return found
