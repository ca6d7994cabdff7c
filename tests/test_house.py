"""How the package is built: rooms that import only what stands below them, and no circle anywhere."""

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import taia_hub

PACKAGE = Path(taia_hub.__file__).parent
ROOMS = re.findall(r"^    (\w+)  +\S", taia_hub.__doc__, re.MULTILINE)  # from the top down


def module_of(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in PACKAGE.rglob("*.py")}


def statements(node):
    """Yields every import, those inside functions too; what is imported for types alone is left out."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield from statements(child)


def imported(module, tree):
    """Returns the modules of the package that the source of one names in its imports."""
    found = set()
    for one in statements(tree):
        if isinstance(one, ast.Import):
            names = [alias.name for alias in one.names]
        else:
            assert not one.level, f"{module} imports relatively"
            names = [f"{one.module}.{alias.name}" for alias in one.names]
        for name in names:
            while name and name not in MODULES:  # a name in a module
                name = name.rpartition(".")[0]
            found.add(name)
    return found - {"", module}


IMPORTS = {module: imported(module, ast.parse(path.read_text("utf-8"))) for module, path in MODULES.items()}


def room(module):
    """A `__main__` is a program: like the package's `__init__` it stands above every room."""
    inside = "." in module and not module.endswith(".__main__")
    return module.split(".")[1] if inside else "__init__"


def test_every_room_stands_in_the_list():
    assert sorted({room(module) for module in MODULES} - {"__init__"}) == sorted(ROOMS)
    assert {path.stem for path in PACKAGE.glob("*.py")} == {
        "__init__",
        "__main__",
        "_version",
        "configuration_taia",
        "errors",
        "modeling_taia",
    }


@pytest.mark.parametrize("name", ROOMS)
def test_a_room_imports_only_what_stands_below_it(name):
    below = {name, *ROOMS[ROOMS.index(name) + 1 :]}
    up = {(module, one) for module in IMPORTS if room(module) == name for one in IMPORTS[module]}
    assert not sorted(pair for pair in up if room(pair[1]) not in below)


def test_there_is_no_circle():
    tuple(TopologicalSorter(IMPORTS).static_order())  # raises CycleError, which names it


def test_a_label_of_the_small_models_names_one_configuration(pico):
    folder = pico.adapter("llama", pico.lora("llama", r=1), "house")
    assert pico.adapter("llama", pico.lora("llama", r=1), "house") == folder
    assert pico.adapter("llama", label="house") == folder
    for config, seed in ((pico.lora("llama", r=2), 1), (pico.lora("llama", r=1), 2)):
        with pytest.raises(ValueError, match="'house' of 'llama' names another configuration"):
            pico.adapter("llama", config, "house", seed)
