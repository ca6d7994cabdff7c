"""The report at the end of a training: what each mode gains on held-out items, and what it keeps of the base."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from taia_hub.common.environment import hardware, installed_versions
from taia_hub.common.fingerprints import prompt_inputs
from taia_hub.common.labels import Encoded
from taia_hub.common.progress import Progress
from taia_hub.common.resuming import Mark, digest
from taia_hub.errors import TAIAError
from taia_hub.evaluation.environment import identify
from taia_hub.results import DatasetSource, Results, TaskResults
from taia_hub.results.retained import HOLDOUT, KL, LOSS
from taia_hub.retaining import Losses, measure, read_texts, task_results
from taia_hub.retaining.tasks import blank_retention, blank_task
from taia_hub.roles.sublayers import SublayerRoles
from taia_hub.switch.settings import parse_setting
from taia_hub.training import modelling
from taia_hub.training.job import Fitted, Job
from taia_hub.training.report_plan import ReportRows

_PARTIAL = "report.json"
_CHUNK = 32
"""Items after which what was measured is written down."""


def make_report(
    fitted: Fitted, rows: ReportRows, folder: Path, placed: SublayerRoles, work: Path, progress: Progress | None
) -> tuple[Results | None, str | None]:
    """Measures a trained model under every setting of its report, as far as an earlier part of the run has not.

    Args:
        fitted: The trained model, which is switched from here on, and can be trained and saved no more.
        rows: What is measured.
        folder: The repository, in which the update and its manifest lie.
        placed: The roles of the base's modules.
        work: Folder of what a run needs to go on.
        progress: Called with `"report"`, items done and items in all.

    Returns:
        The results; and a note where there are none, whatever went wrong: what was trained is not lost for it.
    """
    if not rows:
        return None, None
    if fitted.state_dict is not None:
        return None, "There is no report: the model is sharded. `taia eval --retention` measures what the modes keep."
    try:
        model = modelling.switched(fitted, folder, placed)
        return _Report(fitted.job, rows, model, work, progress).results(), None
    except (TAIAError, RuntimeError, MemoryError, ValueError) as error:
        return None, f"The report could not be made: {' '.join(str(error).split())[:300]}"


class _Report:
    def __init__(self, job: Job, rows: ReportRows, model: Any, work: Path, progress: Progress | None) -> None:
        self.job, self.rows, self.model, self.progress = job, rows, model, progress
        self.identity = identify(model)
        self.done, self.total = 0, len(rows.items) + len(rows.texts)
        asked = {
            "update": self.identity.adapter_sha256,
            "settings": [parse_setting(one).published for one in rows.settings],
            "rows": digest([[dataclasses.asdict(one) for _, one in part] for part in (rows.items, rows.texts)]),
        }
        self.mark = Mark(work / _PARTIAL, asked)

    def results(self) -> Results:
        now = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
        about = {"versions": installed_versions(), "hardware": hardware(self.model.device, 1), "date": now}
        found = Results(self.identity, about)
        prompts = digest(prompt_inputs(self.job.tokenizer))
        items, texts = ([one for one, _ in rows] for rows in (self.rows.items, self.rows.texts))
        if items:
            source = _source(self.job)
            blank = blank_task(
                items, name=HOLDOUT, title="Held-out items", metric=LOSS, dataset=source, prompts_sha256=prompts
            )
            found = found.with_task(self.task(blank, self.rows.items))
        if texts:
            found = found.with_task(self.task(blank_retention(read_texts(), texts), self.rows.texts))
        return found

    def task(self, blank: TaskResults, rows: Sequence[tuple[Any, Encoded]]) -> TaskResults:
        start = time.perf_counter()
        losses = self.measured(blank.name, [encoded for _, encoded in rows], divergence=blank.metric == KL)
        return task_results(blank, self.rows.settings, losses, seconds=time.perf_counter() - start)

    def measured(self, name: str, rows: Sequence[Encoded], *, divergence: bool) -> list[Losses]:
        """Measures the rows by settings, and writes down what is done; what was written down is not measured again."""
        known = (self.mark.read() if self.mark.fits() else {}).get(name) or [{} for _ in self.rows.settings]
        found = [_losses(one) for one in known]
        for start in range(len(found[0].tokens), len(rows), _CHUNK):
            self.tell(start)
            some = rows[start : start + _CHUNK]
            more = measure(
                self.model,
                some,
                self.rows.settings,
                divergence=divergence,
                progress=functools.partial(self.advance, start),
            )
            found = [_joined(one, other) for one, other in zip(found, more, strict=True)]
            self.mark.write(**{name: [dataclasses.asdict(one) for one in found]})
        self.done += len(rows)
        return found

    def advance(self, before: int, done: int, _: int) -> None:
        self.tell(before + done)

    def tell(self, done: int) -> None:
        if self.progress:
            self.progress("report", self.done + done, self.total)


def _losses(values: Mapping[str, Sequence[Any]]) -> Losses:
    return Losses(**{field.name: tuple(values.get(field.name, ())) for field in dataclasses.fields(Losses)})


def _joined(one: Losses, other: Losses) -> Losses:
    names = [field.name for field in dataclasses.fields(Losses)]
    return Losses(**{name: (*getattr(one, name), *getattr(other, name)) for name in names})


def _source(job: Job) -> DatasetSource:
    """Says where the held-out items come from."""
    held = job.data.composition.held_out
    labels = [label for label, count in held.by_source.items() if count]
    facts = [one for label, one in zip(held.by_source, job.data.datasets, strict=True) if label in labels]
    if len(facts) > 1:
        return DatasetSource(", ".join(labels))
    return DatasetSource(facts[0]["id"] or labels[0], revision=facts[0]["revision"], sha256=facts[0]["sha256"])
