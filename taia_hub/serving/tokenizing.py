"""The tokenizer of a served model, and where its answers end, where an engine would take the base model's."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from taia_hub import hub
from taia_hub.common.fingerprints import prompt_inputs
from taia_hub.common.resuming import digest, sole
from taia_hub.engines import Engine
from taia_hub.repository.tokenizer import copy_tokenizer, read_tokenizer
from taia_hub.repository.update_files import Repository, own_tokenizer

_END = "eos_token_id"


def served_tokenizer(
    files: Repository, folder: Path, access: hub.HubAccess, *, trust_remote_code: bool = False
) -> Path | None:
    """Puts tokenizer and `generation_config.json` of a repository into a folder inside `folder`, for engines.

    Returns it, or None where both say what the base model's say.
    """
    own = own_tokenizer(files.places)
    wanted = (hub.CONFIG, hub.GENERATION, *hub.TOKENIZER_FILES)
    base = hub.fetch(files.base.name, wanted, revision=files.base.revision, access=access, what="base model")
    is_own = own is not None and not _same(own, base, trust_remote_code)
    ends = _ends(files.root) or _ends(base.folder)
    if not is_own and ends == _ends(base.folder):
        return None
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / "tokenizer"
        made.mkdir()
        copy_tokenizer(own or base, made)
        for place in (files.root, base.folder):
            if (place / hub.GENERATION).is_file() and not (made / hub.GENERATION).exists():
                shutil.copyfile(place / hub.GENERATION, made / hub.GENERATION)
        hashes = {path.relative_to(made).as_posix(): hub.sha256(path) for path in made.rglob("*") if path.is_file()}
        target = folder / f"tokenizer-{digest(hashes)[:12]}"
        with hub.disk_errors(folder), sole(folder / ".lock"):
            if not target.is_dir():
                half = Path(tempfile.mkdtemp(prefix=".tokenizer-", dir=folder))
                shutil.copytree(made, half, dirs_exist_ok=True)
                half.rename(target)
    return target


def tokenizer_note(engine: Engine, tokenizer: Path | None, *, serves_base: bool) -> str | None:
    """Says where an engine makes other tokens than the rest of this package, or ends answers elsewhere."""
    if tokenizer is None:
        return None
    ends = f"answers end at the tokens {_ends(tokenizer)}" if _ends(tokenizer) else "answers end where the base's do"
    if engine.needs == "gguf":
        return (
            "llama.cpp takes tokenizer, chat template and ends from the GGUF, not those of this model: give "
            f"-- --chat-template with that of {tokenizer}; {ends}."
        )
    if engine.name == "sglang":
        return f"SGLang takes the ends from the base and the tokenizer; {ends}: requests may need stop_token_ids."
    if engine.needs == "merged" and serves_base:
        return "The mode 'none' is the base model with its own tokenizer; the other modes have this model's."
    return None


def _ends(folder: Path) -> list[int]:
    """Returns where answers end, by the generation configuration or else the configuration in a folder."""
    for name in (hub.GENERATION, hub.CONFIG):
        values: dict[str, Any] = hub.read_json(folder / name) if (folder / name).is_file() else {}
        found = values.get(_END, (values.get("text_config") or {}).get(_END))
        if found is not None:
            return [found] if isinstance(found, int) else list(found)
    return []


def _same(own: hub.Source, base: hub.Source, trust_remote_code: bool) -> bool:
    """Tells whether two tokenizers make the same tokens and prompts."""
    if not (base.folder / hub.TOKENIZER_CONFIG).is_file():
        return False
    one, other = (read_tokenizer(place, trust_remote_code) for place in (own, base))
    return prompt_inputs(one) == prompt_inputs(other)
