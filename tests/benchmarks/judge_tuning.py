"""Judges tunings: does a setting keep what TAIA keeps and fit better, and one fit as `all` does and keep more?

    python tests/benchmarks/judge_tuning.py MODEL... --target FILE [--items 80] [--out FOLDER] [--check FILE...]

MODEL are TAIA repositories of one base, such as the demo's `model` folder after trainings with several seeds; FILE
holds items that none of them was trained on. Of each, `taia_hub.tune` is run as a user runs it, and two questions are
asked of its report part, whose items no search has seen:

- Has a tuned setting a retention no worse than TAIA's, and a target loss below TAIA's outside the paired 95 % interval?
- Has one a target loss no worse than that of `all`, and a retention better than its outside the interval?

`--check` measures what the settings that answer them keep on further texts. Exits with 1 where an answer is no.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import taia_hub
from taia_hub.common.progress import ProgressBars
from taia_hub.common.text_tables import aligned
from taia_hub.modeling_taia import TAIAForCausalLM
from taia_hub.repository.tokenizer import load_tokenizer
from taia_hub.results.statistics import resample
from taia_hub.results.text import format_difference
from taia_hub.retaining import measure
from taia_hub.retaining.encoding import encode_texts
from taia_hub.retaining.texts import read_texts


def say(text):
    """Prints at once, since a judgement takes minutes."""
    print(text, flush=True)  # noqa: T201


def answers(tuned):
    """Returns the two questions with the best tuned candidate for each, or None."""
    found = [one for one in tuned.candidates if one.kind == "tuned"]
    beats_taia = [one for one in found if one.saved["attention"].value >= 0 and one.gain["attention"].low > 0]
    beats_all = [one for one in found if one.gain["all"].value >= 0 and one.saved["all"].low > 0]
    return {
        "target loss at TAIA's retention": max(beats_taia, key=lambda one: one.gain["attention"].low, default=None),
        "retention at the target loss of all": max(beats_all, key=lambda one: one.saved["all"].low, default=None),
    }


def check(model, tokenizer, tuned, labels, files):
    """Measures what settings keep on further texts, beside TAIA and all."""
    labels = list(dict.fromkeys(["attention", "all", *labels]))
    for file in files:
        rows, _ = encode_texts(model, tokenizer, read_texts(file).items)
        losses = measure(model, rows, ["none", *(tuned.candidate(label).parsed for label in labels)])
        kl = resample([one.kl for one in losses], weights=losses[0].tokens)
        nats = resample([one.nats for one in losses], weights=losses[0].tokens)
        table = [["setting", "KL to the base", "loss less the base's", "same next token"]]
        for at, label in enumerate(labels, 1):
            grown = format_difference(nats.difference(at, 0))
            table.append([label, f"{kl.value[at]:.4f}", grown, f"{losses[at].kept:.1%}"])
        say(f"\n{file.name}, {len(rows)} texts:\n{aligned(table)}")


def judge(folder, options):
    """Tunes one model and returns whether both answers are yes."""
    say(f"\n=== {folder}")
    model = TAIAForCausalLM.from_pretrained(folder, dtype="float32")
    tokenizer = load_tokenizer(model)
    began, busy = time.monotonic(), time.process_time()
    out = options.out / folder.parent.name if options.out else None
    tuned = taia_hub.tune(
        model, options.target, options.retain, tokenizer=tokenizer, limit=options.items, seed=options.seed,
        points=options.points, out=out, progress=ProgressBars(),
    )  # fmt: skip
    say(tuned)
    say(f"{time.monotonic() - began:.0f} s by the clock, {time.process_time() - busy:.0f} s of the processors")
    good = True
    found = answers(tuned)
    for question, one in found.items():
        good &= one is not None
        if one is None:
            say(f"{question}: NO")
            continue
        reference = "attention" if "TAIA" in question else "all"
        gain, saved = format_difference(one.gain[reference]), format_difference(one.saved[reference])
        say(f"{question}: {one.label}: loss lower by {gain}, retention better by {saved}")
    check(model, tokenizer, tuned, [one.label for one in found.values() if one] + [tuned.choice.label], options.check)
    return good


def main():
    """Parses the command line and judges each model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--target", required=True, type=Path)
    parser.add_argument("--retain", type=Path)
    parser.add_argument("--items", type=int, default=80)
    parser.add_argument("--points", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--check", nargs="*", type=Path, default=[])
    options = parser.parse_args()
    results = {str(folder): judge(folder, options) for folder in options.models}
    say(json.dumps(results))
    sys.exit(not all(results.values()))


if __name__ == "__main__":
    main()
