"""One examination of one model: norms from its files, and hidden states where texts are given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from taia_hub import hub
from taia_hub.analysis.hidden import ALL_MODES, examine_texts
from taia_hub.analysis.measuring import analyze_files, find_adapter
from taia_hub.common.jsonl import LineError, parse_object, read_lines
from taia_hub.common.progress import Progress
from taia_hub.modeling_taia import TAIAForCausalLM
from taia_hub.repository.tokenizer import load_tokenizer
from taia_hub.results import RESULTS_FILE, Results
from taia_hub.results.analysis import Analysis, Subject
from taia_hub.switch.settings import InferenceModules

_FIELDS = ("text", "prompt", "question", "instruction")
_FORM = '{"text": "The sky is blue."}, or the text itself'


def examine(
    name: str,
    *,
    relative: bool = False,
    texts: Sequence[str] = (),
    modes: Sequence[InferenceModules] = ALL_MODES,
    base: str | None = None,
    revision: str | None = None,
    max_tokens: int = 512,
    dtype: Any = "auto",
    device_map: Any = None,
    token: str | bool | None = None,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
    on_load: Callable[[Any], object] | None = None,
) -> Analysis:
    """Examines a TAIA repository or a PEFT adapter, and says which model it was.

    Without `texts` the model is not loaded; `dtype` and `device_map` are those of its forward passes, and `on_load` is
    called with it. `relative` reads (and downloads) the base's weights for their norms; `base` is named where the
    adapter's own base model is not at hand.
    """
    access = hub.HubAccess(token=token)
    files = find_adapter(name, revision=revision, base=base, access=access)
    update = analyze_files(files, access, relative=relative, trust_remote_code=trust_remote_code, progress=progress)
    hidden = None
    if texts:
        options: dict[str, Any] = {"token": token, "trust_remote_code": trust_remote_code}
        options.update(dtype=dtype, device_map=device_map)
        if base:
            model = TAIAForCausalLM.from_adapter(
                files.base.name, files.folder, base_revision=files.base.revision, **options
            )
        else:
            model = TAIAForCausalLM.from_pretrained(name, revision=files.revision, **options)
        if on_load:
            on_load(model)
        tokenizer = load_tokenizer(model, places=files.places, token=token, trust_remote_code=trust_remote_code)
        hidden = examine_texts(model, tokenizer, texts, modes, max_tokens=max_tokens, progress=progress)
    sha256 = hub.sha256(files.folder / files.kind.weights)
    return Analysis(Subject(files.name, files.revision, files.base.name, files.base.revision, sha256), update, hidden)


def read_texts(path: Path) -> list[str]:
    """Reads texts to run modes on: one a line, or JSONL; empty lines are passed over.

    The objects of JSONL have a field `text`, `prompt`, `question` or `instruction`.
    """
    parse: Callable[[str], str] = _field if path.suffix == ".jsonl" else str
    return [text for _, text in read_lines(path, parse, _FORM)[1]]


def matching_results(name: str, revision: str | None, subject: Subject, token: str | bool | None) -> Results | None:
    """Reads the results file of a repository; None where there is none, or one of another adapter than `subject`."""
    source = hub.fetch(name, [RESULTS_FILE], revision=revision, access=hub.HubAccess(token=token))
    if not (source.folder / RESULTS_FILE).is_file():
        return None
    results = Results.load(source.folder / RESULTS_FILE)
    return results if results.model.adapter_sha256 == subject.adapter_sha256 else None


def _field(line: str) -> str:
    item = parse_object(line)
    found = [item[name] for name in _FIELDS if name in item]
    if not found or not isinstance(found[0], str) or not found[0].strip():
        raise LineError(f"no text in one of the fields {', '.join(_FIELDS)}")
    return found[0]
