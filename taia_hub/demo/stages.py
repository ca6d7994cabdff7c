"""The demo, in a process whose environment names the Hub on this disk."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer

from taia_hub import hub
from taia_hub.common.chat import chat_tokens
from taia_hub.common.environment import installed_versions
from taia_hub.common.progress import Progress
from taia_hub.common.resuming import Mark
from taia_hub.compare import compare
from taia_hub.demo.base import MARKER, copied_base, smollm2_base
from taia_hub.demo.evaluation import domain_losses, mode_table
from taia_hub.demo.inputs import MAX_LENGTH, Inputs, demo_recipe
from taia_hub.demo.losses import MODES
from taia_hub.demo.pages import write_pages
from taia_hub.demo.report import DemoReport
from taia_hub.demo.samples import write_items
from taia_hub.repository.creating import create_repository
from taia_hub.repository.side_files import TRAINING_FILE
from taia_hub.training import Trained, train

ANSWER_TOKENS = 64

Log = Callable[[str], None]


def run_stages(folder: Path, inputs: Inputs, *, steps: int, seed: int, log: Log, progress: Progress) -> DemoReport:
    """Makes base and adapter, publishes them, loads the published model and compares its modes.

    Base and adapter are used again when they were made from the same inputs; everything after them is done anew.
    `log` gets what a person wants to read on the way: first of all what the base model answers, untrained.

    Example:
        >>> run_stages(folder, inputs, steps=4, seed=0, log=print, progress=ProgressBars())  # doctest: +SKIP
    """
    seconds: dict[str, float] = {}
    base_id, model_id = f"demo/{inputs.name}", f"demo/{inputs.adapter_name}"

    @contextmanager
    def stage(name: str, said: str) -> Iterator[None]:
        log(f"{said} …")
        start = time.monotonic()
        yield
        seconds[name] = time.monotonic() - start
        log(f"  {name}: {seconds[name]:.1f} s")

    with stage("base", f"Putting {inputs.model} into {folder / 'base'}, and on the demo's Hub as {base_id}"):
        base = _base(folder, inputs, log)
        publish_base(base, base_id)
    with stage("before", f"Asking {inputs.name} as it is"):
        model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
        log(f"\n{_quoted(inputs.prompt[-1]['content'])}\n\n{_indented(_answer(model, tokenizer, inputs))}\n")
        (losses,) = domain_losses(model, tokenizer, inputs.domains, max_length=MAX_LENGTH, progress=progress)
        means = ", ".join(f"{domain} {found.loss:.3f}" for domain, found in losses.items())
        log(f"Its loss on held-out answers, in nats a token: {means}\n")
        del model
    what = f"{inputs.trained_domain} answers" if not inputs.is_own else "your items"
    with stage("training", f"Training a LoRA on all linear layers, on {what}, {steps} steps"):
        trained = train_model(base, folder, inputs, steps=steps, seed=seed, progress=progress)
        log(
            f"  {trained.tokens:,} tokens, loss {trained.first_loss:.3f} -> {trained.last_loss:.3f}"
            if trained.is_new and trained.first_loss is not None and trained.last_loss is not None
            else "  This very training is finished already: it is used again."
        )
    with stage("publishing", f"Publishing {model_id} and loading it again"):
        publish_model(folder / "model", base_id, model_id)
        model, tokenizer = AutoModelForCausalLM.from_pretrained(model_id), AutoTokenizer.from_pretrained(model_id)
    with stage("evaluation", f"Measuring the modes {', '.join(MODES[1:])} in {len(inputs.domains)} domains"):
        lengths = {"max_length": MAX_LENGTH}
        table = mode_table(model, tokenizer, inputs.domains, base=losses, seed=seed, progress=progress, **lengths)
    with stage("answers", "Answering one prompt in every mode"):
        generation: dict[str, Any] = {"max_new_tokens": ANSWER_TOKENS, "do_sample": False}
        found = compare(model, tokenizer, inputs.prompt, MODES, measures=False, **generation)
    report = DemoReport(
        folder=folder,
        model_id=model_id,
        base=inputs.model,
        data=inputs.data,
        steps=steps,
        tokens=trained.tokens,
        trained_domain=inputs.trained_domain,
        domains=table,
        prompt=inputs.prompt[-1]["content"],
        answers={answer.mode: answer.text.strip() for answer in found.answers},
        seconds=seconds,
        versions={name: version for name, version in installed_versions("trl").items() if version},
    )
    write_pages(report)
    return report


def train_model(
    base: Path, folder: Path, inputs: Inputs, *, steps: int, seed: int, progress: Progress | None = None
) -> Trained:
    """Trains a LoRA on all linear layers, as `taia train` does, in steps of 4 items.

    The TAIA repository goes into the subfolder `model`. A finished training of these very inputs is used again, and one
    that was stopped goes on.
    """
    data, model = folder / "items.jsonl", folder / "model"
    write_items(data, inputs.training)
    recipe = demo_recipe(str(base.absolute()), [str(data)], items=len(inputs.training), steps=steps, seed=seed)
    made_from = {"base": hub.folder_print(base), "data": hub.sha256(data), "recipe": recipe.to_mapping()}
    mark = Mark(folder / "training.json", made_from)
    if not mark.fits() and (mark.path.is_file() or not model.exists()):  # else it is not ours, which `train` refuses
        shutil.rmtree(model, ignore_errors=True)
        mark.write()
    return train(recipe, out=model, report=False, progress=progress)  # the demo measures with items of its own


def publish_base(folder: Path, base_id: str) -> None:
    """Publishes the base model unless the Hub holds it already.

    Example:
        >>> publish_base(smollm2_base(Path("taia-demo")), "demo/SmolLM2-135M-Instruct")  # doctest: +SKIP
    """
    files = {path.name: path for path in folder.iterdir() if path.name != MARKER}
    head = hub.look(base_id)
    siblings = hub.info(base_id, revision=head.sha).siblings or () if head.sha else ()
    sizes = {one.rfilename: one.size for one in siblings}
    if any(sizes.get(name) != path.stat().st_size for name, path in files.items()):
        hub.publish(files, head)


def publish_model(folder: Path, base_id: str, model_id: str) -> None:
    """Publishes a model that was trained on a folder as one of the base that the Hub holds, with its record."""

    def record(target: Path) -> None:
        shutil.copyfile(folder / TRAINING_FILE, target / TRAINING_FILE)

    create_repository(base_id, str(folder / "adapter"), push=model_id, extra_files=record)


def _base(folder: Path, inputs: Inputs, log: Log) -> Path:
    before = (folder / "base" / MARKER).stat().st_mtime_ns if (folder / "base" / MARKER).is_file() else None
    if inputs.base is None:
        base = smollm2_base(folder)
    else:
        base = copied_base(folder, Path(inputs.base), {"model": inputs.model, "revision": inputs.revision})
    if (base / MARKER).stat().st_mtime_ns == before:
        log("  It is there already and used again.")
    return base


def _answer(model: Any, tokenizer: Any, inputs: Inputs) -> str:
    """Answers as the mode `none` will, greedily."""
    import torch

    ids = torch.tensor([chat_tokens(tokenizer, inputs.prompt)])
    limits = {"max_new_tokens": ANSWER_TOKENS, "do_sample": False, "pad_token_id": tokenizer.pad_token_id or 0}
    said = model.generate(ids, attention_mask=torch.ones_like(ids), **limits)[0, ids.shape[1] :]
    return tokenizer.decode(said, skip_special_tokens=True).strip()


def _quoted(text: str) -> str:
    return f'  "{text}"'


def _indented(text: str) -> str:
    return "\n".join(f"  > {line}" for line in text.splitlines())
