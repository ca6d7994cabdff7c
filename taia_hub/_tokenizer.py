"""The tokenizer of a loaded model."""

from __future__ import annotations

import contextlib
from typing import Any

from transformers import AutoTokenizer

from taia_hub.errors import RepositoryError


def load_tokenizer(model: Any, **keywords: Any) -> Any:
    """Loads the tokenizer of a TAIA repository, or the base model's where it has none.

    Args:
        model: A loaded TAIA model.
        **keywords: `token`, `trust_remote_code`, `cache_dir` and so on for transformers.

    Returns:
        The tokenizer.

    Raises:
        RepositoryError: If neither has one.
    """
    config = model.taia_config
    sources = (
        (config._name_or_path, getattr(config, "_commit_hash", None)),
        (config.base_model_name_or_path, config.base_model_revision),
    )
    for name, revision in sources:
        if name:
            with contextlib.suppress(OSError, ValueError):
                return AutoTokenizer.from_pretrained(name, revision=revision, **keywords)
    names = " nor ".join(f"'{name}'" for name, _ in sources if name)
    raise RepositoryError(
        f"There is no tokenizer in {names}.", "Push one to the repository: tokenizer.push_to_hub(...)."
    )
