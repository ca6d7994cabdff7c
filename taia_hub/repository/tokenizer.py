"""Whose tokenizer a model has: the repository's own, else its adapter's, else the base model's; loaded and saved."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from taia_hub import hub
from taia_hub.errors import RepositoryError, TAIAError
from taia_hub.hub.config import Fields
from taia_hub.repository.update_files import own_tokenizer

logger = logging.getLogger(__name__)

_FILES = (hub.TOKENIZER_CONFIG, hub.CONFIG, *hub.TOKENIZER_FILES)


def load_tokenizer(
    model: Any,
    *,
    places: Sequence[hub.Source] | None = None,
    token: str | bool | None = None,
    trust_remote_code: bool = False,
) -> Any:
    """Loads the tokenizer of a loaded model's TAIA repository, or its adapter's, or the base's where they have none.

    A damaged one is an error: the base's may not be its equal. `places` are where its own may lie, where the model was
    loaded from a part of a repository.
    """
    config = model.taia_config
    places = model._taia_places if places is None else places
    if own := own_tokenizer(places):
        return read_tokenizer(own, trust_remote_code)
    base, access = config.base_model_name_or_path, hub.HubAccess(token=token)
    for place in places[:1]:
        if hub.may_lack(place, hub.TOKENIZER_CONFIG, access):  # the base's would be taken in its place
            raise hub.not_cached(f"The own tokenizer of '{place.name}', if it has one,", place.name, place.revision)
    files = (*_FILES, "*.py") if trust_remote_code else _FILES
    source = hub.fetch(base, files, revision=config.base_model_revision, access=access, what="tokenizer")
    if (source.folder / hub.TOKENIZER_CONFIG).is_file():
        return read_tokenizer(source, trust_remote_code)
    try:
        return AutoTokenizer.from_pretrained(source.folder, trust_remote_code=trust_remote_code)
    except Exception as error:  # transformers' readers fail in every way
        names = dict.fromkeys([*(place.name for place in places), base])
        raise RepositoryError(
            f"There is no tokenizer in {' nor '.join(map(repr, names))}.",
            "Push one to the repository: tokenizer.push_to_hub(...).",
        ) from error


def save_tokenizer(
    config: Fields,
    folder: Path,
    token: str | bool | None = None,
    *,
    own: hub.Source | None = None,
    trust_remote_code: bool = False,
) -> str | None:
    """Saves the tokenizer `own` as it is, or the base model's after transformers' repairs, which go by its model type.

    Returns why nothing was written, or None; a base without a tokenizer is only warned of, a damaged `own` is an error.
    """
    if own is not None:
        read_tokenizer(own, trust_remote_code)
        copy_tokenizer(own, folder)
        return None
    name, revision = config.base_model_name_or_path or "", config.base_model_revision
    source = Path(name)
    access, code = hub.HubAccess(token=token), ("*.py",) if trust_remote_code else ()
    fetched = None
    if revision is not None:
        # Not by AutoTokenizer, which takes a Hub that does not answer for a base without a tokenizer.
        wanted = (hub.CONFIG, *hub.TOKENIZER_FILES, *code)
        fetched = hub.fetch(name, wanted, revision=revision, access=access, what="base model", local=False)
        source = fetched.folder
    _check_files(name, source)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        if fetched is not None and hub.may_lack(fetched, hub.TOKENIZER_CONFIG, access):
            raise hub.not_cached(f"The tokenizer of the base model '{name}'", name, revision) from error
        logger.warning("The base model '%s' has no tokenizer to publish: %s", name, error)
        return str(error)
    except Exception as error:  # transformers' readers fail in every way
        raise _damaged(name, hub.reason_of(error)) from error
    tokenizer.save_pretrained(folder)
    return None


def copy_tokenizer(source: hub.Source, folder: Path) -> None:
    """Copies the files of a tokenizer to a folder that has none."""
    for pattern in hub.TOKENIZER_FILES:
        for path in source.folder.glob(pattern):
            target = folder / path.relative_to(source.folder)
            if path.is_file() and not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)


def _check_files(name: str, folder: Path) -> None:
    """Refuses damaged JSON by the file's name; transformers does not say which one it was."""
    for path in (folder / hub.TOKENIZER_CONFIG, folder / "tokenizer.json"):
        if path.exists():
            try:
                hub.read_json(path)
            except TAIAError as error:
                raise _damaged(name, error.message) from error


def read_tokenizer(source: hub.Source, trust_remote_code: bool) -> Any:
    """Loads the tokenizer in a folder; RepositoryError where it is damaged."""
    _check_files(source.name, source.folder)
    try:
        return AutoTokenizer.from_pretrained(source.folder, trust_remote_code=trust_remote_code)
    except Exception as error:  # transformers' readers fail in every way
        raise _damaged(source.name, hub.reason_of(error)) from error


def _damaged(name: str, reason: str) -> RepositoryError:
    return RepositoryError(
        f"The tokenizer of '{name}' cannot be read: {reason.rstrip('.')}.",
        "Push it again with tokenizer.push_to_hub(...), or copy the files again.",
    )
