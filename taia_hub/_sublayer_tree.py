"""Places the modules of a model: finds the sublayers by their signs, then decides what stands around them."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator

from torch import nn

from . import _sublayer_signs as signs
from ._sublayer_overrides import OVERRIDES

# A name counts twice what the arguments of `forward` do: with them, or with a second name, a module is placed.
_ENOUGH = 3
_LISTS = (nn.ModuleList, nn.ModuleDict)


class Node:
    """A module with its place in the model.

    Attributes:
        module: The module.
        path: Its name in `model.named_modules()`.
        attribute: Its last name that is no list index.
        parent: The node that holds it, or None at the root.
        children: The children that hold parameters, by name.
        owns: Whether it owns parameters directly.
        role: What was decided, or None.
        sublayer: The role that its own signs give it, or None.
        structured: Whether its own children show that role.
        fixed: Whether the role comes from the override table.
    """

    def __init__(self, module: nn.Module, path: str, name: str, parent: Node | None) -> None:
        self.module = module
        self.path = path
        self.attribute = parent.attribute if name.isdigit() and parent is not None else name
        self.parent = parent
        self.children: dict[str, Node] = {}
        self.owns = any(p is not None for p in module._parameters.values())
        self.role: str | None = None
        self.sublayer: str | None = None
        self.structured = False
        self.fixed = False
        self.is_list = isinstance(module, _LISTS)
        self.is_norm = signs.is_norm(module, self.attribute)

    def subtree(self) -> Iterator[Node]:
        """Yields the node and everything below it."""
        yield self
        for child in self.children.values():
            yield from child.subtree()

    def ancestors(self) -> Iterator[Node]:
        """Yields the nodes above, nearest first."""
        node = self.parent
        while node is not None:
            yield node
            node = node.parent

    def names(self) -> list[str]:
        """Gives the names of children and own parameters."""
        return [*self.children, *(name for name, p in self.module._parameters.items() if p is not None)]


class Tree:
    """The modules of a model that hold parameters, in the order of `model.named_modules()`.

    Args:
        model: The model; a module that is used twice stands where it is met first.
    """

    def __init__(self, model: nn.Module) -> None:
        self.nodes: list[Node] = []
        self._seen: set[nn.Module] = set()
        self.root = self._grow(model, "", "", None)
        models = [node.module for node in self.nodes if hasattr(node.module, "config_class") or node is self.root]
        self.model_nodes = {id(module) for module in models}
        self.model_names = signs.model_names(models)

    def _grow(self, module: nn.Module, path: str, name: str, parent: Node | None) -> Node:
        self._seen.add(module)
        node = Node(module, path, name, parent)
        position = len(self.nodes)
        self.nodes.append(node)
        for child_name, child in module._modules.items():
            if child is None or child in self._seen:
                continue
            grown = self._grow(child, f"{path}.{child_name}" if path else child_name, child_name, node)
            if grown.owns or grown.children:
                node.children[child_name] = grown
        if not (node.owns or node.children or parent is None):
            del self.nodes[position:]
        return node
