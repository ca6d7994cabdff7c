"""A training before and after: what was found out before weights are loaded, and what came of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AutoTokenizer

from taia_hub import hub
from taia_hub.common.imports import import_or_raise
from taia_hub.common.progress import Progress
from taia_hub.errors import RepositoryError, TAIAError
from taia_hub.training import record
from taia_hub.training.encoding import Encoder
from taia_hub.training.planning import Plan, make_plan, process_rank
from taia_hub.training.recipe import TrainingRecipe
from taia_hub.training.selection import Selection, select, trained_parameters
from taia_hub.training.trainer import check_trackers
from taia_hub.training.workspace import fingerprint, training_inputs
from taia_hub.weights.skeleton import skeleton


@dataclass(frozen=True)
class Job:
    """A recipe with everything that was found out before weights are loaded.

    `data` is a `PreparedData`; `encoder` makes its tokens, by the tokenizer that the trained model gets; `skeleton`,
    the base model on the meta device, is what the repository is made with at the end; `parameters` counts those of the
    base, `inputs` name what the weights depend on beside the recipe, and `fingerprint` is a hash of both.
    """

    recipe: TrainingRecipe
    base: hub.Source
    data: Any
    encoder: Encoder
    skeleton: Any = field(repr=False)
    selection: Selection
    parameters: int
    inputs: Mapping[str, Any]
    fingerprint: str
    token: str | bool | None = field(repr=False)

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the trained model."""
        return self.encoder.tokenizer

    @property
    def commit_message(self) -> str:
        """First line of the commit that publishes what is trained."""
        return f"Train {self.recipe.name or self.recipe.method} on {self.recipe.base}"

    @property
    def config(self) -> Any:
        """The base model's configuration."""
        return self.skeleton.config

    @property
    def max_length(self) -> int:
        """Longest row in tokens: that of the recipe, or of the model where it takes less.

        In a packed row every item begins at position 0 again, so that the row may be longer.
        """
        if self.recipe.packing:
            return self.recipe.max_length
        limit = getattr(self.config.get_text_config(), "max_position_embeddings", None)
        return min(self.recipe.max_length, limit) if isinstance(limit, int) and limit > 0 else self.recipe.max_length

    def _remarks(self) -> tuple[str, ...]:
        remarks = [f"{name} is not used: method {self.recipe.method} has none." for name in self.recipe.unused()]
        stored = getattr(self.config, "dtype", None)
        if self.recipe.method == "full" and stored not in (None, torch.float32):
            remarks.append(
                f"The weights are trained in float32 and stored in {str(stored).removeprefix('torch.')} as the base's "
                "are: changes below its precision are rounded away."
            )
        return (*remarks, *self.data.notes)

    def plan(
        self, lengths: list[int], items: int, tokens: int, notes: tuple[str, ...], micro_batch_size: int | None
    ) -> Plan:
        """Decides how it is run here. Arguments as of `make_plan`."""
        plan = make_plan(
            self.recipe,
            self.config,
            lengths=lengths,
            items=items,
            tokens=tokens,
            base_parameters=self.parameters,
            trained=trained_parameters(self.selection, self.recipe),
            micro_batch_size=micro_batch_size,
            notes=(*self.selection.notes, *self._remarks(), *notes),
        )
        return dataclasses.replace(plan, held_out=len(self.data.held_out))


@dataclass(frozen=True)
class Fitted:
    """A trained model, outside every wrapper of the trainer, and what is known of its training.

    `state_dict` holds the gathered tensors where the model is sharded, else it is None; `losses` are as of
    `record.loss_log`, and `seconds` the time in the training loop, over all parts of the run.
    """

    job: Job
    plan: Plan
    model: Any
    state_dict: Any
    losses: list[dict[str, float]]
    seconds: float

    def noted(self, note: str) -> Fitted:
        """Returns the same with one more note for the user."""
        return dataclasses.replace(self, plan=dataclasses.replace(self.plan, notes=(*self.plan.notes, note)))

    def record(self, adapter_sha256: str | None) -> dict[str, Any]:
        """Makes the contents of `taia_training.json`."""
        return record.training_record(
            self.job.recipe,
            self.plan,
            fingerprint=self.job.fingerprint,
            datasets=self.job.data.datasets,
            composition=self.job.data.composition.to_json(),
            losses=self.losses,
            seconds=self.seconds,
            adapter_sha256=adapter_sha256,
        )


def prepare_job(recipe: TrainingRecipe, token: str | bool | None, progress: Progress | None, push: str | None) -> Job:
    """Checks trackers, base, data, structure, tokenizer and selection, in this order; no weights are loaded."""
    import_or_raise("trl", extra="train", feature="`taia train`")
    from taia_hub.training.data import prepare_data

    check_trackers(recipe.report_to)
    base = hub.resolve_base(recipe.base, recipe.base_revision, hub.HubAccess(token=token))
    if push and base.revision is None:
        raise RepositoryError(
            f"The base model '{recipe.base}' is a folder on this machine; whoever loads the published model could "
            "not find it.",
            "Push the base first and give its Hub id, or train with --out alone.",
        )
    data = prepare_data(recipe, token=token, progress=progress if process_rank() == 0 else None)
    model = skeleton(base, hub.HubAccess(token=token), recipe.trust_remote_code)
    tokenizer = load_tokenizer(base, recipe, model.config, token)
    held_out = data.composition.held_out
    inputs = training_inputs(base, data.datasets, held_out.sha256 if held_out else None)
    return Job(
        recipe=recipe,
        base=base,
        data=data,
        encoder=Encoder(tokenizer, assistant_only=recipe.assistant_only_loss),
        skeleton=model,
        selection=select(model, recipe),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        inputs=inputs,
        fingerprint=fingerprint(recipe, inputs),
        token=token,
    )


def load_tokenizer(base: hub.Source, recipe: TrainingRecipe, config: Any, token: str | bool | None) -> Any:
    """Loads the base model's tokenizer; a RepositoryError says so where it has none."""
    try:
        with hub.foreign_errors(base.name, what="base model", revision=base.revision):
            return AutoTokenizer.from_pretrained(
                base.name,
                config=config,
                revision=base.revision,
                token=token,
                trust_remote_code=recipe.trust_remote_code,
            )
    except TAIAError as error:
        raise RepositoryError(
            f"The tokenizer of the base model '{base.name}' cannot be loaded: {hub.reason_of(error)}",
            "Save one into the base model's folder or repository: tokenizer.save_pretrained(...).",
        ) from error
