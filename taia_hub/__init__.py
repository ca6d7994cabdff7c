"""TAIA for the Hugging Face Hub: train all parameters, infer with only the attention updates (arXiv 2405.20192)."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from taia_hub._version import __version__ as __version__
from taia_hub.configuration_taia import TAIAConfig
from taia_hub.errors import TAIAError
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

AutoConfig.register("taia", TAIAConfig)
AutoModel.register(TAIAConfig, TAIAModel)
AutoModelForCausalLM.register(TAIAConfig, TAIAForCausalLM)
