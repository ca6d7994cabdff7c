"""The tokenizer of a loaded model."""

from __future__ import annotations

from typing import Any

from transformers import AutoTokenizer

from taia_hub import hub
from taia_hub.errors import RepositoryError

_CONFIG = "tokenizer_config.json"
_FILES = (_CONFIG, hub.CONFIG, *hub.TOKENIZER_FILES, "*.py")


def load_tokenizer(model: Any, *, token: str | bool | None = None, trust_remote_code: bool = False) -> Any:
    """Loads the tokenizer of a TAIA repository, or the base model's where it has none.

    Args:
        model: A loaded TAIA model.
        token: Access token.
        trust_remote_code: Whether a tokenizer's own code may run.

    Returns:
        The tokenizer.

    Raises:
        RepositoryError: If neither has one, or the repository's is damaged: the base's may not be its equal.
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
