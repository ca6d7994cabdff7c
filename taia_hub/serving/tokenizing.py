"""The tokenizer of a served model, and where its answers end, where an engine would take the base model's."""

from __future__ import annotations

import shutil
from pathlib import Path

from taia_hub import hub
from taia_hub.common.chat import end_ids
from taia_hub.common.fingerprints import prompt_inputs
from taia_hub.common.resuming import digest, scratch_beside, sole
from taia_hub.engines import Engine
from taia_hub.repository.tokenizer import copy_tokenizer, read_tokenizer
from taia_hub.repository.update_files import Repository, own_tokenizer


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
    with hub.disk_errors(folder), scratch_beside(folder / "tokenizer") as made:
        copy_tokenizer(own or base, made)
        if (generation := files.generation) is not None:
            shutil.copyfile(generation, made / hub.GENERATION)
        hashes = {path.relative_to(made).as_posix(): hub.sha256(path) for path in made.rglob("*") if path.is_file()}
        target = folder / f"tokenizer-{digest(hashes)[:12]}"
        with sole(folder / ".lock"):
            if not target.is_dir():
                made.rename(target)
    return target


def tokenizer_note(engine: Engine, tokenizer: Path | None, *, serves_base: bool) -> str | None:
    """Says where an engine makes other tokens than the rest of this package, or ends answers elsewhere."""
    if tokenizer is None:
        return None
    ends = f"answers end at the tokens {_ends(tokenizer)}" if _ends(tokenizer) else "answers end where the base's do"
    if engine.needs == "gguf":
        return (
            "llama.cpp gets the chat template of this model, and takes the tokenizer and the ends of answers from the "
            f"GGUF; of this model {ends}."
        )
    if engine.name == "sglang":
        return f"SGLang takes the ends from the base and the tokenizer; {ends}: requests may need stop_token_ids."
    if engine.needs == "merged" and serves_base:
        return "The mode 'none' is the base model with its own tokenizer; the other modes have this model's."
    return None


def _ends(folder: Path) -> list[int]:
    """Returns where answers end, by the generation configuration or else the configuration in a folder."""
    for name in (hub.GENERATION, hub.CONFIG):
        if (folder / name).is_file() and (found := end_ids(hub.read_json(folder / name))):
            return found
    return []


def _same(own: hub.Source, base: hub.Source, trust_remote_code: bool) -> bool:
    """Tells whether two tokenizers make the same tokens and prompts."""
    if not (base.folder / hub.TOKENIZER_CONFIG).is_file():
        return False
    one, other = (read_tokenizer(place, trust_remote_code) for place in (own, base))
    return prompt_inputs(one) == prompt_inputs(other)
