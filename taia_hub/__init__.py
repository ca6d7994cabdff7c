"""TAIA for the Hugging Face Hub: train all parameters, infer with only the attention updates (arXiv 2405.20192).

How this is built. Three rules: imports point down this list (a test holds it against the source), values go out
(frozen, made once, handed on), and what comes in is checked where it comes in. A room's own docstring says what comes
in and what goes out; what is public stands in the README or in a room's `__all__`.

    cli                 the command line: parse, call, print
    demo                a small fine-tune shown whole, in minutes
    reproducing         a row of the paper: trained, evaluated, laid beside the paper's numbers
    page                the comparison of modes as a Gradio page
    space               a Space on the Hub that shows that page
    serving             the modes of a repository behind an engine: files, commands, start
    tuning              which part of an update to keep, searched: target loss against what is lost
    training            from a recipe to a repository, by TRL, PEFT and accelerate
    evaluation          lm-evaluation-harness on one loaded model under every mode
    retaining           losses and divergence from the base, by mode, on texts
    compare             one prompt, an answer by each mode
    analysis            norms, ranks and hidden states of an update
    modeling_taia       `TAIAModel` and `TAIAForCausalLM`: a base model of any class, with a switch
    model               where a model comes from, and what it turns into
    exporting           a mode as a plain LoRA
    merging             a mode as a plain checkpoint, shard by shard
    repository          a TAIA repository: opened, loaded, made, described, published
    refining            what looks like noise, taken off an update's matrices
    local_hub           a Hub in a folder
    cards               model cards: values in, text out
    engines             what vLLM, SGLang, llama.cpp, transformers and others take
    updates             the kinds of update (peft, molora, dense), each put on a model under the switch
    weights             checkpoints as files, and a base's structure without its weights
    results             result files, paired statistics
    configuration_taia  `TAIAConfig`: config.json as a configuration of transformers
    hub                 the Hub: layout and strict reading of a repository, publishing in one commit
    switch              the grammar of a setting, and which updates act now
    roles               which module is attention, which is feed-forward
    common              what knows nothing of TAIA: whole files, resuming, progress, tables
    errors              what came, what is allowed, what to do next
    _version            the version
"""

import functools
from typing import TYPE_CHECKING

from taia_hub._version import __version__ as __version__
from taia_hub.common.imports import later, when_imported
from taia_hub.errors import TAIAError

if TYPE_CHECKING:
    from taia_hub.configuration_taia import TAIAConfig
    from taia_hub.evaluation import evaluate
    from taia_hub.modeling_taia import TAIAForCausalLM, TAIAModel
    from taia_hub.retaining import retention
    from taia_hub.roles.sublayers import register_roles, sublayer_roles
    from taia_hub.switch.modes import Mode
    from taia_hub.switch.settings import InferenceModules
    from taia_hub.training import TrainingRecipe, train
    from taia_hub.tuning import tune

__all__ = [
    "InferenceModules",
    "Mode",
    "TAIAConfig",
    "TAIAError",
    "TAIAForCausalLM",
    "TAIAModel",
    "TrainingRecipe",
    "__version__",
    "evaluate",
    "register_roles",
    "retention",
    "sublayer_roles",
    "train",
    "tune",
]
_HOMES = {
    "InferenceModules": "switch.settings",
    "Mode": "switch.modes",
    "TAIAConfig": "configuration_taia",
    "TAIAForCausalLM": "modeling_taia",
    "TAIAModel": "modeling_taia",
    "TrainingRecipe": "training",
    "evaluate": "evaluation",
    "register_roles": "roles.sublayers",
    "retention": "retaining",
    "sublayer_roles": "roles.sublayers",
    "train": "training",
    "tune": "tuning",
}


__getattr__ = later(__name__, _HOMES)


def __dir__() -> list[str]:
    return __all__


def _register_config() -> None:
    from transformers.models.auto.configuration_auto import AutoConfig

    from taia_hub.configuration_taia import TAIAConfig

    AutoConfig.register("taia", TAIAConfig)


def _register_models() -> None:
    from transformers.models.auto import modeling_auto

    from taia_hub.configuration_taia import TAIAConfig
    from taia_hub.modeling_taia import OtherHead, TAIAForCausalLM, TAIAModel

    modeling_auto.AutoModel.register(TAIAConfig, TAIAModel)
    modeling_auto.AutoModelForCausalLM.register(TAIAConfig, TAIAForCausalLM)
    for head in ("MaskedLM", "QuestionAnswering", "SequenceClassification", "TokenClassification"):
        getattr(modeling_auto, f"AutoModelFor{head}").register(TAIAConfig, OtherHead)


def _tell_trainers() -> None:
    from taia_hub.model.trainers import tell_transformers

    tell_transformers()


def _tell_trl(module: str) -> None:
    from taia_hub.model.trainers import tell_trl

    tell_trl(module)


# The Auto classes know TAIA from the moment that there are any; nobody who does not use them waits for them.
when_imported("transformers.models.auto.configuration_auto", _register_config)
when_imported("transformers.models.auto.modeling_auto", _register_models)
when_imported("transformers.trainer", _tell_trainers)
for _name in ("base", "distillation", "dpo", "grpo", "kto", "rloo", "sft"):
    when_imported(f"trl.trainer.{_name}_trainer", functools.partial(_tell_trl, f"trl.trainer.{_name}_trainer"))
