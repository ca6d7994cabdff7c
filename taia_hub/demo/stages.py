"""The demo, in a process whose environment names the Hub on this disk."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

from taia_hub import hub
from taia_hub.common.progress import Progress
from taia_hub.common.resuming import Mark
from taia_hub.compare import compare
from taia_hub.demo.base import MARKER, smollm2_base
from taia_hub.demo.evaluation import MODES, mode_table
from taia_hub.demo.report import DemoReport
from taia_hub.demo.samples import DOMAINS, TRAINED_DOMAIN, TRAINING_SAMPLE, load_items, sample_path
from taia_hub.repository import publishing
from taia_hub.training import TrainingRecipe, train

BASE_ID = "demo/SmolLM2-135M-Instruct"
MODEL_ID = "demo/smollm2-135m-medical-taia"
PROMPT = "A shop sells pens at 3 dollars each. How much do 4 pens cost?"
ANSWER_TOKENS = 80
BATCH_SIZE = 8

Log = Callable[[str], None]


def run_stages(folder: Path, *, steps: int, items: int, seed: int, log: Log, progress: Progress) -> DemoReport:
    """Makes base and adapter, publishes them, loads the published model and compares its modes.

    Base and adapter are used again when they were made from the same inputs; everything after them is done anew.
    `items` are measured in each domain, or all where there are fewer.

    Example:
        >>> run_stages(folder, steps=4, items=4, seed=0, log=print, progress=ProgressBars())  # doctest: +SKIP
    """
    seconds: dict[str, float] = {}

    @contextmanager
    def stage(name: str, said: str) -> Iterator[None]:
        log(said)
        start = time.monotonic()
        yield
        seconds[name] = time.monotonic() - start

    with stage("base", f"Unpacking SmolLM2-135M-Instruct and publishing it as {BASE_ID}"):
        publish_base(smollm2_base(folder))
    with stage("training", f"Training a LoRA on all linear layers, on medical answers, {steps} steps"):
        trained = train_model(BASE_ID, folder, steps=steps, seed=seed, progress=progress)
    with stage("publishing", f"Publishing {MODEL_ID} and loading it again"):
        publishing.push_folder(trained, MODEL_ID)
        model = AutoModelForCausalLM.from_pretrained(MODEL_ID)
        tokenizer = AutoTokenizer.from_pretrained(MODEL_ID)
    with stage("evaluation", f"Measuring {len(MODES)} modes in {len(DOMAINS)} domains"):
        domains = {domain: load_items(sample)[:items] for domain, sample in DOMAINS.items()}
        table = mode_table(model, tokenizer, domains, seed=seed, progress=progress)
    with stage("answers", "Answering one prompt in every mode"):
        found = compare(model, tokenizer, PROMPT, MODES, measures=False, max_new_tokens=ANSWER_TOKENS, do_sample=False)
    said = {answer.mode: answer.text.strip() for answer in found.answers}
    return DemoReport(folder, MODEL_ID, steps, TRAINED_DOMAIN, table, PROMPT, said, seconds)


def train_model(base: str, folder: Path, *, steps: int, seed: int, progress: Progress | None = None) -> Path:
    """Trains a LoRA on all linear layers on the shipped medical answers, as `taia train` does, in steps of 8 items.

    The TAIA repository goes into the subfolder `model`, which is returned. A finished training of these very inputs is
    used again, and one that was stopped goes on.
    """
    data = sample_path(TRAINING_SAMPLE)
    recipe = TrainingRecipe(
        base=base,
        data=(str(data),),
        rank=16,
        alpha=32,
        dropout=0.0,  # no item is seen twice, and on a CPU its random masks take a quarter of the time
        learning_rate=2e-3,
        warmup_ratio=0.0,
        epochs=steps * BATCH_SIZE / len(load_items(TRAINING_SAMPLE)),
        max_steps=steps,
        batch_size=BATCH_SIZE,
        micro_batch_size=1,  # on a CPU what padding costs is more than what larger products save
        dtype="float32",  # bfloat16 is slower on CPUs without units for it, and the numbers would differ
        seed=seed,
    )
    found = hub.resolve_base(base, None, hub.HubAccess())
    made_from = {"base": found.revision or base, "data": hub.sha256(data), "recipe": recipe.to_mapping()}
    mark = Mark(folder / "training.json", made_from)
    model = folder / "model"
    if not mark.fits() and (mark.path.is_file() or not model.exists()):  # else it is not ours, which `train` refuses
        shutil.rmtree(model, ignore_errors=True)
        mark.write()
    train(recipe, out=model, progress=progress)
    return model


def publish_base(folder: Path) -> None:
    """Publishes the base model unless the Hub holds it already.

    Example:
        >>> publish_base(smollm2_base(Path("taia-demo")))  # doctest: +SKIP
    """
    api = hub.api()
    api.create_repo(BASE_ID, exist_ok=True)
    files = {path.name: path.stat().st_size for path in folder.iterdir() if path.name != MARKER}
    siblings = api.model_info(BASE_ID, files_metadata=True).siblings or []
    if not files.items() <= {sibling.rfilename: sibling.size for sibling in siblings}.items():
        api.upload_folder(repo_id=BASE_ID, folder_path=folder, ignore_patterns=[MARKER])
