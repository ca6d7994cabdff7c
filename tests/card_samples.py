"""What the golden cards say, for the tests of cards. `python tests/card_samples.py` writes the golden cards anew."""

import dataclasses
import random
from pathlib import Path

from taia_hub import cards
from taia_hub.results import DatasetSource, Group, ModelIdentity, ModeScores, Results, TaskResults
from tests.tuning_samples import ADAPTER_SHA, BASE_SHA, SHA, tuned

FOLDER = Path(__file__).parent / "data" / "cards"
CHANCES = {"none": 0.3, "attention": 0.6, "ffn": 0.5, "all": 0.4}


def task(key, title, items, chances=CHANCES, metric="acc,none", shots=0, asked=None, **source):
    """Makes the results of a task whose items are right by chance, the same every time."""
    generator = random.Random(key)
    modes = {}
    for mode, chance in chances.items():
        values = tuple(float(generator.random() < chance) for _ in range(items))
        modes[mode] = ModeScores(mode, {metric: sum(values) / items}, {metric: values}, 1.0)
    dataset = DatasetSource(**{"path": f"org/{key}", "split": "test", "revision": "d" * 40, **source})
    hashes = tuple(f"{key}-{index}" for index in range(items))
    return TaskResults(key, title, shots, asked, metric, True, dataset, "1", "", hashes, modes)


def weighed(key, title, items, metric, **means):
    """Makes a task whose scores are means a token: metric to mode to mean, from which each item is off by chance."""
    generator = random.Random(key)
    tokens = tuple(generator.randint(20, 90) for _ in range(items))
    modes = {}
    for mode in CHANCES:
        values = {}
        for name, by_mode in means.items():
            error = 0.0 if mode == "none" and metric == "kl" else 0.1 * by_mode[mode]
            values[name] = tuple(count * (by_mode[mode] + generator.uniform(-error, error) / 2) for count in tokens)
        scores = {name: sum(found) / sum(tokens) for name, found in values.items()}
        modes[mode] = ModeScores(mode, scores, values, 1.0)
    dataset, hashes = DatasetSource("items.jsonl"), tuple(f"{key}-{index}" for index in range(items))
    return TaskResults(key, title, 0, None, metric, False, dataset, "1", "", hashes, modes, tokens)


def results(*tasks, groups=None, **settings):
    """Puts tasks together as the results of org/model-taia."""
    return Results(
        ModelIdentity("org/model-taia", SHA, "org/base", BASE_SHA, ADAPTER_SHA, "bfloat16"),
        {
            "versions": {"python": "3.11.2", "lm-eval": "0.4.13", "transformers": "5.23.0"},
            "hardware": {"device": "cuda", "name": "NVIDIA H200"},
            "date": "2026-11-21",
        },
        {"limit": None, "chat_template": True, **settings},
        {one.key: one for one in tasks},
        groups or {},
    )


RESULTS = results(
    task("svamp", "SVAMP", 100),
    task("maths_algebra", "algebra", 50, name="algebra"),
    task("maths_geometry", "geometry", 60, name="geometry"),
    groups={"maths": Group("MATH", ("maths_algebra", "maths_geometry"), True)},
)
HELD_OUT = weighed(
    *("holdout", "Held-out items", 40, "loss"), loss={"none": 2.4, "attention": 2.1, "ffn": 2.0, "all": 1.9}
)
KEPT = weighed(
    *("retention", "Retention on general text", 60, "kl"),
    kl={"none": 0.0, "attention": 0.012, "ffn": 0.05, "all": 0.09},
    kept={"none": 1.0, "attention": 0.975, "ffn": 0.95, "all": 0.93},
    loss={"none": 3.0, "attention": 3.01, "ffn": 3.04, "all": 3.09},
)
REPORT = results(HELD_OUT, KEPT)
"""What a training ends with."""
EVERYTHING = cards.CardData(
    repo_id="org/model-taia",
    base_model="org/base",
    base_revision=BASE_SHA,
    method="LORA",
    parts={
        "attention": cards.RolePart(8, 1_234_567, (16,), 1.25, 0.0104, 11.5),
        "ffn": cards.RolePart(6, 960, (8,), 2.5, 0.0213, 6.25),
        "other": cards.RolePart(0, 0),
    },
    default="attention",
    adapter_sha256=ADAPTER_SHA,
    adapter_config={"peft_type": "LORA", "r": 16, "lora_alpha": 32, "lora_dropout": 0.05, "bias": "none"},
    taia_version="0.1.0",
    license_fields={"license": "other", "license_name": "pico-1.0", "license_link": "https://example.org/pico"},
    language=("en", "zh"),
    tags=("medical",),
    widget=("What helps against a cold?",),
    training=cards.Training(
        datasets=(
            cards.DatasetFacts("medquad", "org/medquad", "b" * 40, 480, 412_345, "e" * 64, "cc-by-4.0"),
            cards.DatasetFacts("my notes", items=20, sha256="f" * 64),
        ),
        hyperparameters={"learning_rate": 0.001, "epochs": 1, "lr_scheduler_type": "cosine"},
        hardware={"gpu": "NVIDIA H200", "gpus": 1},
        versions={"peft": "0.21.2", "torch": "2.13.0", "transformers": "5.23.0"},
        seconds=282.0,
        co2_eq_emissions={"emissions": 12.5, "source": "codecarbon", "hardware_used": "NVIDIA H200"},
        adapter_sha256=ADAPTER_SHA,
    ),
    results=RESULTS,
    figures=(
        cards.Figure("figures/tuning_front.png", "Chart of what settings gain and lose."),
        cards.Figure("figures/scores.png", "Chart of the score of each mode by task."),
        cards.Figure("figures/update_norms.png", "Line chart. Norm of the update by layer and role."),
    ),
    tuning=tuned(layers=4, found=9, chosen="tuned 5"),
    space="org/model-taia-compare",
)
TRAINED = dataclasses.replace(EVERYTHING, results=REPORT, figures=(), space=None, tuning=None)
NOTHING = cards.CardData("model-taia", None, None, "LORA", {}, "attention")
MERGED = cards.MergedCardData(
    repo_id="org/merged",
    base_model="org/base",
    base_revision=BASE_SHA,
    source="org/model-taia",
    source_revision=SHA,
    setting="attention",
    dtype="bfloat16",
    sha256={"model.safetensors": "9" * 64},
    taia_version="0.1.0",
    license_fields={"license": "apache-2.0"},
)
SPACE = cards.SpaceCardData(
    title="TAIA side by side",
    sdk_version="6.31.0",
    models=("org/model-taia", "org/base"),
    revisions={"org/model-taia": SHA, "org/base": BASE_SHA},
    preload={"org/model-taia": ("config.json",), "org/base": ("config.json", "model.safetensors")},
    licenses={"org/base": "pico-1.0"},
    python_version="3.11",
    hardware="zero-a10g",
    short_description="Four modes of one fine-tune answer the same prompt",
    license="apache-2.0",
)
GOLDEN = {
    "everything": (EVERYTHING, None),
    "nothing": (NOTHING, None),
    "short": (EVERYTHING, "short"),
    "trained": (TRAINED, "short"),
    "merged": (MERGED, None),
    "space": (SPACE, None),
}


def render(name):
    """Renders the golden card of a name."""
    data, template = GOLDEN[name]
    return cards.render_card(data, template)


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for golden in GOLDEN:
        (FOLDER / f"{golden}.md").write_text(render(golden), encoding="utf-8")
