"""What the trainers of transformers and TRL are told of a TAIA model when they are made."""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
from typing import Any

from transformers import TrainerCallback

from taia_hub.errors import ConfigError
from taia_hub.switch.keyword import check_training

logger = logging.getLogger(__name__)

_REFERENCES = ("dpo", "grpo", "kto", "rloo")
# ^ trainers that load a reference model by the name of the base


class Checks(TrainerCallback):
    """Refuses what would train nothing, or publish what nobody could load."""

    def on_init_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Refuses what could not be pushed, before anything is trained.

        Trainer pushes checkpoints file by file, by names that a TAIA repository lacks; at the end it pushes all.
        """
        from transformers.trainer_utils import HubStrategy

        if not args.push_to_hub or not hasattr(model, "taia_config"):
            return
        self.on_push_begin(args, state, control, model=model)
        if args.hub_strategy == HubStrategy.EVERY_SAVE:
            logger.warning("Trainer cannot push the checkpoints of a TAIA model; it pushes the model at the end.")
            args.hub_strategy = HubStrategy.END
        elif args.hub_strategy != HubStrategy.END:
            raise ConfigError(
                f"hub_strategy={args.hub_strategy.value!r} came; Trainer cannot push the checkpoints of a TAIA model.",
                "Use hub_strategy='end', or push a checkpoint as it is, a repository: `taia push DIR REPO`.",
            )

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Refuses a model that takes no gradients: with checkpointing it would be trained in vain, without a word."""
        if hasattr(model, "taia_config"):
            check_training(model)

    def on_push_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Refuses a model that nobody else could load."""
        from taia_hub.repository.reading import check_publishable

        if hasattr(model, "taia_config"):
            check_publishable(model.taia_config)


def tell_transformers() -> None:
    """Gives each Trainer of a TAIA model these checks, and leaves the card to the model, which wrote it when saved."""
    from transformers import trainer

    callbacks: Any = trainer.DEFAULT_CALLBACKS
    callbacks.append(Checks)
    _leave_card(trainer.Trainer)


def _leave_card(trainer: Any) -> None:
    made = trainer.create_model_card

    @functools.wraps(made)
    def create_model_card(self: Any, *args: Any, **kwargs: Any) -> None:
        if not hasattr(self.model, "taia_config"):
            made(self, *args, **kwargs)

    trainer.create_model_card = create_model_card


def tell_trl(module: str) -> None:
    """Gives the trainers of a module of TRL a TAIA model's own tokenizer, and makes them leave its card.

    A model whose reference would be the plain base is refused: TRL gives a PeftModel its own start as the reference,
    and knows it by its class.
    """
    from taia_hub.repository.tokenizer import load_tokenizer

    kind, home = module.rpartition(".")[2].removesuffix("_trainer"), vars(importlib.import_module(module))
    for one in home.values():
        if getattr(one, "__module__", "") == module and "create_model_card" in vars(one):
            _leave_card(one)
    named = {name.lower(): one for name, one in home.items()}
    trainer: Any = named.get(f"{kind}trainer")
    if trainer is None:  # the base of all, or another version of TRL, whose import must not fail for us
        return
    made, signature = trainer.__init__, inspect.signature(trainer.__init__)
    usual = named.get(f"{kind}config")

    @functools.wraps(made)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        given = signature.bind_partial(self, *args, **kwargs)
        values = {**given.arguments, "args": given.arguments.get("args") or usual}  # whose attributes are the defaults
        if hasattr(model := values.get("model"), "taia_config"):
            if kind in _REFERENCES:
                _check_reference(trainer.__name__, values, signature)
            if "processing_class" in signature.parameters and values.get("processing_class") is None:
                remote = getattr(values["args"], "trust_remote_code", False)
                given.arguments["processing_class"] = load_tokenizer(model, trust_remote_code=remote)
        made(*given.args, **given.kwargs)

    trainer.__init__ = __init__


def _check_reference(trainer: str, given: dict[str, Any], signature: inspect.Signature) -> None:
    if given.get("ref_model") is not None:
        return
    args = given.get("args")
    if "ref_model" in signature.parameters:
        if getattr(args, "precompute_ref_log_probs", False):
            return
        way = "Pass `ref_model=copy.deepcopy(model)`, or `precompute_ref_log_probs=True` in its arguments."
    else:
        if not getattr(args, "beta", True):
            return
        way = "Pass `beta=0.0` in its arguments, or train a PeftModel and make a TAIA repository of what it saves."
    raise ConfigError(
        f"{trainer} would take the plain base model as the reference of a TAIA model, not the update as it is before "
        "training.",
        way,
    )
