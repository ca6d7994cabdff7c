"""How a trained model ends its answers: what is published of it, and one answer that shows whether it does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from taia_hub import hub
from taia_hub.common.chat import embedding_rows, padding_id
from taia_hub.common.labels import IGNORED_LABEL, Encoded
from taia_hub.training.job import Fitted, Job

_TRIED, _MORE, _MOST = 64, 16, 96
"""Items of which the shortest is tried, tokens that its answer may be longer, and the most there are."""


def ends(present: Any, end: int | None) -> int | list[int] | None:
    """Adds the token that ends a trained answer to `eos_token_id`, one or several.

    Example:
        >>> ends(2, 5), ends([2, 5], 5), ends(None, 5), ends(2, None)
        ([2, 5], [2, 5], 5, 2)
    """
    found = [present] if isinstance(present, int) else list(present or ())
    found += [end] if end is not None and end not in found else []
    return found[0] if len(found) == 1 else found or None


def publish_end(folder: Path, job: Job) -> None:
    """Writes into the `generation_config.json` of a folder where a trained answer ends."""
    path = folder / hub.GENERATION
    values = hub.read_json(path) if path.is_file() else {"eos_token_id": _present(job)}
    values["eos_token_id"] = ends(values.get("eos_token_id"), job.encoder.end)
    values.pop("_from_model_config", None)  # else transformers may make it again of the base's configuration
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def ending_note(fitted: Fitted) -> str | None:
    """Answers a short prompt of the training, and says so where the answer does not end; None where it does.

    Nothing is tried on a model that is sharded, or where an answer has no end to look for.
    """
    job = fitted.job
    found = None if fitted.state_dict is not None or job.encoder.end is None else _shortest(job)
    if found is None:
        return None
    prompt, most = found
    model, stops = fitted.model.eval(), ends(_present(job), job.encoder.end)
    ids = torch.tensor([prompt], device=model.get_input_embeddings().weight.device)
    try:
        with torch.no_grad():
            said = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=most,
                do_sample=False,
                num_beams=1,
                use_cache=True,
                eos_token_id=stops,
                pad_token_id=padding_id(job.tokenizer, embedding_rows(model)),
            )
    except (RuntimeError, MemoryError, ValueError) as error:  # what was trained must not be lost for it
        return f"Whether answers end could not be tried: {' '.join(str(error).split())[:200]}"
    if int(said[0, -1]) in ([stops] if isinstance(stops, int) else stops or []):
        return None
    end = job.tokenizer.convert_ids_to_tokens(job.encoder.end)
    return (
        f"A prompt of the training was answered with {most} tokens and no {end}, which ends the answers in the data: "
        "answers may go on until max_new_tokens. More steps teach the end."
    )


def _present(job: Job) -> Any:
    """Returns where the base's answers end."""
    generation = getattr(job.skeleton, "generation_config", None)
    found = getattr(generation, "eos_token_id", None)
    return found if found is not None else getattr(job.config.get_text_config(), "eos_token_id", None)


def _shortest(job: Job) -> tuple[list[int], int] | None:
    """Returns the prompt of a short item, and how many tokens its answer may have."""
    rows, found = job.data.train, list[Encoded]()
    for index in range(min(len(rows), _TRIED)):
        encoded = job.encoder.encode(rows[index]["messages"])
        if len(encoded.input_ids) <= job.max_length:
            found.append(encoded)
    if not found:
        return None
    shortest = min(found, key=lambda one: len(one.input_ids))
    ids, labels = shortest.input_ids, shortest.labels
    start = next((at for at, label in enumerate(labels) if label != IGNORED_LABEL), 0)
    if not start:
        return None
    stop = next((at for at in range(start, len(labels)) if labels[at] == IGNORED_LABEL), len(labels))
    return ids[:start], min(stop - start + _MORE, _MOST)
