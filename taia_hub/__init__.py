"""TAIA for the Hugging Face Hub: train all parameters, infer with only the attention updates (arXiv 2405.20192)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from taia_hub._version import __version__ as __version__
from taia_hub.common.imports import when_imported
from taia_hub.errors import TAIAError

if TYPE_CHECKING:
    from taia_hub.configuration_taia import TAIAConfig
    from taia_hub.evaluation import evaluate
    from taia_hub.modeling_taia import TAIAForCausalLM, TAIAModel
    from taia_hub.roles.sublayers import register_roles, sublayer_roles
    from taia_hub.training import TrainingRecipe, train

__all__ = [
    "TAIAConfig",
    "TAIAError",
    "TAIAForCausalLM",
    "TAIAModel",
    "TrainingRecipe",
    "evaluate",
    "register_roles",
    "sublayer_roles",
    "train",
]
_HOMES = {
    "TAIAConfig": "configuration_taia",
    "TAIAForCausalLM": "modeling_taia",
    "TAIAModel": "modeling_taia",
    "TrainingRecipe": "training",
    "evaluate": "evaluation",
    "register_roles": "roles.sublayers",
    "sublayer_roles": "roles.sublayers",
    "train": "training",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return globals().setdefault(name, getattr(import_module(f"{__name__}.{_HOMES[name]}"), name))


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _register_config() -> None:
    from transformers.models.auto.configuration_auto import AutoConfig

    from taia_hub.configuration_taia import TAIAConfig

    AutoConfig.register("taia", TAIAConfig)


def _register_models() -> None:
    from transformers.models.auto.modeling_auto import AutoModel, AutoModelForCausalLM

    from taia_hub.configuration_taia import TAIAConfig
    from taia_hub.modeling_taia import TAIAForCausalLM, TAIAModel

    AutoModel.register(TAIAConfig, TAIAModel)
    AutoModelForCausalLM.register(TAIAConfig, TAIAForCausalLM)


# The Auto classes know TAIA from the moment that there are any; nobody who does not use them waits for them.
when_imported("transformers.models.auto.configuration_auto", _register_config)
when_imported("transformers.models.auto.modeling_auto", _register_models)
