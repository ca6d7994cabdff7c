"""The tokenizer of a model: loaded with it, and saved beside what is made of it."""

from __future__ import annotations

import logging
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from taia_hub import hub
from taia_hub.errors import RepositoryError
from taia_hub.hub.config import Fields

logger = logging.getLogger(__name__)

_CONFIG = "tokenizer_config.json"
_FILES = (_CONFIG, hub.CONFIG, *hub.TOKENIZER_FILES, "*.py")


def load_tokenizer(model: Any, *, token: str | bool | None = None, trust_remote_code: bool = False) -> Any:
    """Loads the tokenizer of a loaded model's TAIA repository or PEFT adapter, or the base's where it has none.

    A damaged one is an error: the base's may not be its equal.
    """
    config = model.taia_config
    sources = {
        config._name_or_path: getattr(config, "_commit_hash", None),
        config.base_model_name_or_path: config.base_model_revision,
    }
    names = [name for name in sources if name]
    for name in names:
        access = hub.HubAccess(token=token)
        source = hub.fetch(name, _FILES, revision=sources[name], access=access, what="tokenizer")
        if not (source.folder / _CONFIG).is_file() and name != names[-1]:
            continue  # every tokenizer that transformers saved has this file; older ones only bases have
        try:
            return AutoTokenizer.from_pretrained(source.folder, trust_remote_code=trust_remote_code)
        except Exception as error:
            if (source.folder / _CONFIG).is_file():
                raise RepositoryError(
                    f"The tokenizer of '{name}' cannot be read: {error}.",
                    "Push it again with tokenizer.push_to_hub(...), or copy the files again.",
                ) from error
    raise RepositoryError(
        f"There is no tokenizer in {' nor '.join(map(repr, names))}.",
        "Push one to the repository: tokenizer.push_to_hub(...).",
    )


def save_tokenizer(
    config: Fields,
    folder: Path,
    token: str | bool | None = None,
    *,
    source: Path | None = None,
    trust_remote_code: bool = False,
) -> str | None:
    """Saves the base model's tokenizer as it is after transformers' repairs, which go by the base's model type.

    That of the checkpoint in the folder `source` is taken instead, where it has one. Returns why nothing was written,
    or None; a base without a tokenizer is only warned of.
    """
    name, revision = config.base_model_name_or_path or "", config.base_model_revision
    if source is not None and (source / "tokenizer_config.json").is_file():
        revision = None
    else:
        source = Path(name)
    if revision is not None:
        # Each file is asked for by name: AutoTokenizer takes a Hub that does not answer for a base without a tokenizer.
        api = hub.api(token)
        with hub.hub_errors(name, what="base model", revision=revision):
            files = api.list_repo_files(name, revision=revision)
            wanted = [file for file in files if any(fnmatch(file, pattern) for pattern in hub.TOKENIZER_FILES)]
            code = [file for file in files if trust_remote_code and file.endswith(".py")]
            for file in [*wanted, *code, hub.CONFIG]:
                downloaded = Path(api.hf_hub_download(name, file, revision=revision))
        source = downloaded.parent
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        logger.warning("The base model '%s' has no tokenizer to publish: %s", name, error)
        return str(error)
    tokenizer.save_pretrained(folder)
    return None
