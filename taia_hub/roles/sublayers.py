"""Which module of a model mixes across tokens (attention), which within a token (FFN), and which does neither.

The answer is read from structure: several signs (class name without the model's own name, attribute name, shape of
the children, arguments of `forward`) must agree before a module is placed. What structure leaves in doubt stands in
`overrides.py`, or is reported as unplaced.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from taia_hub.errors import ConfigError, closest
from taia_hub.roles import ROLES
from taia_hub.roles.tree import Tree, place

_LAYER = re.compile(r"\.(\d+)(?:\.|$)")


@dataclass(frozen=True)
class SublayerRoles:
    """The role of every module that owns parameters, by path, and what could not be placed.

    `unplaced` are the paths that are `"other"` only because structure left a doubt; a norm, an embedding or a head,
    which is known to be `"other"`, is not among them.
    """

    roles: dict[str, str]
    unplaced: tuple[str, ...]


_registered: dict[str | type[nn.Module], dict[str, str]] = {}


def register_roles(model_type_or_class: str | type[nn.Module], roles: Mapping[str, str]) -> None:
    """Says which modules of a custom architecture are attention, FFN or neither; wins over structure.

    Args:
        model_type_or_class: `config.model_type` of the model, or the class of the model (subclasses included).
        roles: Glob on the module path, as in the model with its head, to a role. The role holds for the module and
            everything inside it; later entries override earlier ones. An empty mapping removes a registration.

    Raises:
        ConfigError: If the key is neither a model type nor a module class, a pattern is empty or a role is unknown.

    Example:
        >>> register_roles("my_model", {"layers.*.mixer": "attention", "layers.*.channel": "ffn"})
        >>> register_roles("my_model", {})
    """
    is_class = isinstance(model_type_or_class, type) and issubclass(model_type_or_class, nn.Module)
    if not is_class and not (isinstance(model_type_or_class, str) and model_type_or_class):
        raise ConfigError(
            f"Cannot register sublayer roles for {model_type_or_class!r}.",
            "Give the model's config.model_type or its class, a subclass of torch.nn.Module.",
        )
    for pattern, role in roles.items():
        if not isinstance(pattern, str) or not pattern:
            raise ConfigError(
                f"A pattern of sublayer roles is {pattern!r}.", "Give a glob on a module path such as 'layers.*.mlp'."
            )
        if role not in ROLES:
            raise ConfigError(
                f"Unknown sublayer role {role!r} for {pattern!r}.{closest(str(role), ROLES)}",
                f"Choose one of {', '.join(ROLES)}.",
            )
    if roles:
        _registered[model_type_or_class] = dict(roles)
    else:
        _registered.pop(model_type_or_class, None)


def sublayer_roles(model: nn.Module) -> dict[str, str]:
    """Gives the sublayer role of every module that owns parameters directly.

    Args:
        model: A model, on any device (also `meta`), before an adapter is injected.

    Returns:
        Module path, as in `model.named_modules()`, to `"attention"`, `"ffn"` or `"other"`.

    Raises:
        ConfigError: If a registered pattern matches no module of the model.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=16, num_hidden_layers=1,
        ...                      num_attention_heads=2)
        >>> roles = sublayer_roles(LlamaForCausalLM(config))
        >>> roles["model.layers.0.self_attn.q_proj"], roles["model.layers.0.mlp.up_proj"], roles["lm_head"]
        ('attention', 'ffn', 'other')
    """
    return find_sublayers(model).roles


def find_sublayers(model: nn.Module) -> SublayerRoles:
    """Places every module that owns parameters, and tells which ones could not be placed.

    Raises:
        ConfigError: If a registered pattern matches no module of the model.

    Example:
        >>> find_sublayers(nn.Sequential(nn.LayerNorm(4)))
        SublayerRoles(roles={'0': 'other'}, unplaced=())
    """
    tree = Tree(model)
    place(tree)
    _apply_registered(model, tree)
    owners = [node for node in tree.nodes if node.owns]
    return SublayerRoles(
        roles={node.path: node.role or "other" for node in owners},
        unplaced=tuple(node.path for node in owners if node.role is None),
    )


def is_routed(path: str) -> bool:
    """Tells by its path a module of routed experts, each of which sees some of the tokens; shared ones see all.

    Example:
        >>> is_routed("model.layers.0.mlp.experts.3.up_proj"), is_routed("model.layers.0.mlp.shared_expert.up_proj")
        (True, False)
    """
    return any("expert" in part and "shared" not in part for part in path.split("."))


def layer_of(path: str) -> int | None:
    """Tells the index of the layer that a module is in, the first number in its path; None outside the layers.

    Example:
        >>> layer_of("model.layers.3.mlp.experts.7.up_proj"), layer_of("lm_head")
        (3, None)
    """
    number = _LAYER.search(f".{path}")
    return int(number[1]) if number else None


def _apply_registered(model: nn.Module, tree: Tree) -> None:
    """Writes the registered roles over those read from structure."""
    config = getattr(model, "config", None)
    keys: list[str | type] = [str(getattr(config, "model_type", "")), *reversed(type(model).__mro__)]
    for key in keys:
        for pattern, role in _registered.get(key, {}).items():
            matched = [node for node in tree.nodes if fnmatch.fnmatchcase(node.path, pattern)]
            if not any(inner.owns for node in matched for inner in node.subtree()):
                raise ConfigError(
                    f"The registered sublayer role {pattern!r}: {role!r} matches no module with parameters of "
                    f"{type(model).__name__}.{closest(pattern, [node.path for node in tree.nodes])}",
                    "Patterns are globs on the names in model.named_modules().",
                )
            for node in matched:
                for inner in node.subtree():
                    inner.role = role
