"""Places the modules of a model: finds the sublayers by their signs, then decides what stands around them."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator

from torch import nn

from taia_hub.roles import signs
from taia_hub.roles.overrides import OVERRIDES

# A name counts twice what the arguments of `forward` do: with them, or with a second name, a module is placed.
_ENOUGH = 3
_LISTS = (nn.ModuleList, nn.ModuleDict)
_OVERRIDES_OF = {owner: [entry for entry in OVERRIDES if entry.owner == owner] for owner, *_ in OVERRIDES}


class Node:
    """A module with its place in the model.

    Attributes:
        attribute: Its last name that is no list index.
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
        self.attribute: str = parent.attribute if name.isdigit() and parent is not None else name
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
        """Gives the names of children, norms aside, and of own parameters."""
        children = (name for name, child in self.children.items() if not child.is_norm)
        return [*children, *(name for name, p in self.module._parameters.items() if p is not None)]


class Tree:
    """The modules of a model that hold parameters, in the order of `named_modules()`, where each is met first."""

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


def place(tree: Tree) -> None:
    """Writes a role on every node of a tree that has one; what stays None could not be placed."""
    _apply_overrides(tree)
    cores = _Finder(tree).find(tree.root)
    scope = _Scope(tree, [core for core in cores if core.sublayer == "attention"])
    for core in cores:
        if core.sublayer == "attention" or scope.accepts(core):
            _mark(core)
            scope.add_spine(core)
    for node in tree.nodes:
        if scope.holds_layer(node):
            _mark_bare_mlp(node)
    for node in tree.nodes:
        if node.role is None and node.owns:
            node.role = scope.role_of_rest(node)


def _apply_overrides(tree: Tree) -> None:
    """Marks the children that the override table names, and keeps them from being read again."""
    for node in tree.nodes:
        for entry in (entry for name in signs.class_names(node.module) for entry in _OVERRIDES_OF.get(name, ())):
            for name, child in node.children.items():
                if fnmatch.fnmatchcase(name, entry.child):
                    child.sublayer = entry.role
                    _mark(child)
                    for inner in child.subtree():
                        inner.fixed = True


class _Finder:
    """Finds the outermost modules that are an attention or an FFN by their own signs."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._words: dict[type[nn.Module], frozenset[str]] = {}

    def find(self, node: Node) -> list[Node]:
        if node.fixed or node.is_norm:
            return []
        inner = [core for child in node.children.values() for core in self.find(child)]
        if node.is_list or id(node.module) in self._tree.model_nodes:
            return inner
        if any(signs.in_both(name) for name in node.names()):
            return inner  # one weight holds attention and MLP: whichever role it had, masking it would be wrong
        role, named = self._judge(node)
        if role is None or (role == "ffn" and any(core.sublayer == "attention" for core in inner)):
            return inner
        if role == "attention" and not named and node.structured and self._is_monolith(node, inner):
            return inner + self._parts(node)
        if role == "attention" and any(core.sublayer == "ffn" for core in inner) and not (named and node.structured):
            return inner
        node.sublayer = role
        return [node]

    def _judge(self, node: Node) -> tuple[str | None, bool]:
        """Weighs the signs of one module: its role, and whether its name says so."""
        cls = type(node.module)
        if cls not in self._words:
            self._words[cls] = signs.class_words(node.module, self._tree.model_names)
        class_words = self._words[cls]
        if class_words & signs.OTHER_CLASS_WORDS:
            return None, False
        points = {"attention": 0, "ffn": 0}
        for found in (class_words, signs.words(node.attribute)):
            across, within = bool(found & signs.ATTENTION_WORDS), bool(found & signs.FFN_WORDS)
            if across != within:
                points["attention" if across else "ffn"] += 2
        best = max(points, key=lambda role: points[role])
        named = points[best] > 0 and "layer" not in class_words and "block" not in class_words
        if structure := self._structure(node):
            points[structure] += 2
        elif signs.mlp_shape(child.module for child in node.children.values()):
            points["ffn"] += 1
        if points["attention"] + points["ffn"] > 0 and (forward := signs.forward_sign(node.module)):
            points[forward] += 1
        role, other = ("attention", "ffn") if points["attention"] >= points["ffn"] else ("ffn", "attention")
        node.structured = structure == role
        return (role if points[role] >= _ENOUGH and points[role] - points[other] >= 2 else None), named

    @staticmethod
    def _structure(node: Node) -> str | None:
        names = node.names()
        if signs.attention_structure(names):
            return "attention"
        return "ffn" if signs.ffn_structure(names) else None

    @staticmethod
    def _is_monolith(node: Node, inner: list[Node]) -> bool:
        """Tells whether a layer holds the projections of its attention itself, beside an FFN."""
        rest = [child.module for name, child in node.children.items() if not signs.attention_part(name)]
        return any(core.sublayer == "ffn" for core in inner) or signs.mlp_shape(rest)

    @staticmethod
    def _parts(node: Node) -> list[Node]:
        parts = [
            c
            for name, c in node.children.items()
            if not c.is_norm and c.sublayer is None and signs.attention_part(name)
        ]
        for part in parts:
            part.sublayer, part.structured = "attention", True
        return parts


class _Scope:
    """Where the layers of a model are: the elements of every list of modules that holds an attention."""

    def __init__(self, tree: Tree, attentions: list[Node]) -> None:
        self._tree = tree
        self._any_attention = bool(attentions)
        self._layers: set[Node] = set()
        self._holders: set[Node] = set()
        self._spine: set[Node] = set()
        for core in attentions:
            chain = list(core.ancestors())
            holder = next((node for node in chain if not node.is_list), None)
            if holder is not None:
                self._holders.add(holder)
                if id(holder.module) not in tree.model_nodes:
                    self._layers.add(holder)
            for node in chain:
                if isinstance(node.module, (nn.ModuleList, nn.Sequential)):
                    self._layers.update(node.children.values())

    def add_spine(self, core: Node) -> None:
        """Notes the modules above a sublayer that was found."""
        self._spine.update(core.ancestors())

    def accepts(self, core: Node) -> bool:
        """Tells whether what looks like an FFN stands in a layer (a projector's MLP does not)."""
        for node in (core, *core.ancestors()):
            if node in self._layers or node in self._holders:
                return True
            if self._is_known_other(node):
                return False
            if node is not core and node.parent is not None and node.parent.is_list:
                return any(child.is_norm for child in node.children.values())
        return False

    def holds_layer(self, node: Node) -> bool:
        """Tells whether the children of a node are those of a layer."""
        if node in self._layers or node in self._holders:
            return node.role is None
        return node in self._spine and any(above in self._layers for above in node.ancestors())

    def role_of_rest(self, node: Node) -> str | None:
        """Decides on a module in no sublayer: `"attention"` or `"other"` if that is certain, else None."""
        if signs.is_relative_bias(node.module, node.attribute) and self._any_attention:
            return "attention"
        chain = [node, *node.ancestors()]
        if any(above.is_norm for above in chain) or isinstance(node.module, nn.Embedding):
            return "other"
        in_layer = next((i for i, above in enumerate(chain) if above in self._layers), None)
        if in_layer is None:
            if any(self._is_known_other(above) for above in chain):
                return "other"
            in_list = any(above.is_list for above in chain)
            return "other" if self._any_attention and not in_list else None
        if any(self._is_known_other(above) for above in chain[: in_layer + 1]):
            return "other"
        beside_sublayers = node in self._spine or (node.parent in self._spine and not node.children)
        return "other" if beside_sublayers and signs.only_vectors(node.module) else None

    def _is_known_other(self, node: Node) -> bool:
        names = signs.class_words(node.module, self._tree.model_names) | signs.words(node.attribute)
        return id(node.module) not in self._tree.model_nodes and bool(names & signs.OTHER_WORDS)


def _mark(core: Node) -> None:
    """Gives a sublayer's role to all its modules; norms of the residual stream inside it are `"other"`."""
    role = core.sublayer

    def mark(node: Node, inside: bool, norm: bool) -> None:
        inside = inside or (node.structured and node.sublayer == role)
        if node.is_norm and not norm:
            norm = not inside or signs.is_residual_norm(node.attribute)
        if not node.fixed:
            node.role = "other" if norm else role
        for child in node.children.values():
            mark(child, inside, norm)

    mark(core, False, False)


def _mark_bare_mlp(layer: Node) -> None:
    """Finds an MLP whose two projections stand in the layer itself (`fc1`, `fc2`) or in `intermediate`, `output`."""
    rest = [(name, child) for name, child in layer.children.items() if child.role in (None, "ffn") and not child.fixed]
    for up_name, up in rest:
        for down_name, down in rest:
            if up is down or not (signs.is_up(up_name) and signs.is_down(down_name)) or (up.role and down.role):
                continue
            first, second = _linear(up), _linear(down)
            if first and second and signs.narrows_again(first, second):
                for node in (up, down):
                    if node.role is None:
                        node.sublayer = "ffn"
                        _mark(node)


def _linear(node: Node) -> tuple[int, int] | None:
    """Gives the widths of a linear layer, or of the only one among the children of a module."""
    shape = signs.linear_shape(node.module)
    inner = [s for child in node.children.values() if (s := signs.linear_shape(child.module))]
    return shape or (inner[0] if len(inner) == 1 else None)
