"""`.eval_results/*.yaml`: scores of benchmarks that are registered on the Hub, for their leaderboards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml
from huggingface_hub.utils import yaml_dump

from taia_hub.cards.escaping import is_repo_id
from taia_hub.cards.tables import MODE_WORDS
from taia_hub.results import RESULTS_FILE, Results, summarise

FOLDER = ".eval_results"
_OURS = "inference_modules: "
"""How the notes of each score of ours begin."""


@dataclass(frozen=True)
class Benchmark:
    """A data set of the Hub that has a leaderboard, with the task of its `eval.yaml` and the number of all its items.

    `metrics` are that task's, as rows of results name them.
    """

    dataset: str
    task: str
    metrics: tuple[str, ...]
    items: int


BENCHMARKS: Mapping[str, Benchmark] = {
    "gsm8k": Benchmark("openai/gsm8k", "gsm8k", ("exact_match,strict-match", "exact_match,flexible-extract"), 1319),
    "mmlu_pro": Benchmark("TIGER-Lab/MMLU-Pro", "mmlu_pro", ("exact_match,custom-extract",), 12032),
    "gpqa_diamond_zeroshot": Benchmark("Idavidrein/gpqa", "diamond", ("acc",), 198),
}
"""Name of lm-eval's task or group to the benchmark that it is."""


def eval_results_files(
    results: Results | None, repo_id: str | None = None, commit: str | None = None
) -> dict[str, str]:
    """Writes a YAML file a registered benchmark, in the Hub's own form: in per cent as leaderboards have them.

    A benchmark that was evaluated on a part of its items is left out, and so is the base model's own score.

    Args:
        results: What was evaluated.
        repo_id: Where the results file is published, which the source of each score links to; none for a folder.
        commit: The commit to link to instead, for a pull request: until it is merged, main has no results file.
    """
    files: dict[str, str] = {}
    if results is None or results.settings.get("limit"):
        return files
    source = {}
    if repo_id and "/" in repo_id and is_repo_id(repo_id):
        at = f"tree/{commit}" if commit else f"blob/main/{RESULTS_FILE}"
        name = "The model that was evaluated" if commit else "Scores of every item"
        source = {"source_url": f"https://huggingface.co/{repo_id}/{at}", "source_name": name}
    by_benchmark: dict[str, list[EvalResultEntry]] = {}
    for row in summarise(results).rows:
        name = row.key.partition("@")[0]
        benchmark = BENCHMARKS.get(name)
        if benchmark is None or row.metric not in benchmark.metrics or row.items != benchmark.items:
            continue
        task = results.tasks.get(row.key)
        entries = [
            EvalResultEntry(
                dataset_id=benchmark.dataset,
                task_id=benchmark.task,
                value=round(100 * score.value, 4),
                dataset_revision=task.dataset.revision if task else None,
                date=results.environment.get("date"),
                notes=_notes(label, row.num_fewshot),
                **source,
            )
            for label, score in row.scores.items()
            if label != "none"
        ]
        by_benchmark.setdefault(name, []).extend(entries)
    for name, entries in by_benchmark.items():
        files[f"{FOLDER}/{name}.yaml"] = yaml_dump(eval_result_entries_to_yaml(entries), sort_keys=False)
    return {path: text for path, text in files.items() if text.strip() != "[]"}


def is_eval_results_file(path: str, text: str) -> bool:
    """Tells whether a file is one that `eval_results_files` wrote, of whichever results.

    Args:
        path: Path in the repository.
        text: What it holds.

    Returns:
        Whether each score in it is of one of our modes; only then may it be deleted.
    """
    if not (path.startswith(f"{FOLDER}/") and path.endswith(".yaml")):
        return False
    entries = _entries(text)
    return bool(entries) and all(str(one.get("notes")).startswith(_OURS) for one in entries)


def same_scores(text: str | None, other: str | None) -> bool:
    """Tells whether two files of ours say the same scores, be their source named otherwise or not at all."""
    one, two = (
        [{key: value for key, value in entry.items() if key != "source"} for entry in _entries(one or "")]
        for one in (text, other)
    )
    return one == two


def _entries(text: str) -> list[dict[str, Any]]:
    """Reads the entries of a file; none where it is no list of them."""
    try:
        entries = yaml.safe_load(text)
    except yaml.YAMLError:
        return []
    return entries if isinstance(entries, list) and all(isinstance(one, dict) for one in entries) else []


def _notes(label: str, shots: int | None) -> str:
    words = MODE_WORDS.get(label)
    mode = f"{_OURS}{label}" + (f" ({words.meaning}: {words.acting} updates)" if words else "")
    return mode if shots is None else f"{mode}, {shots}-shot"
