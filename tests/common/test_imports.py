"""What happens once a module is imported, and optional modules that are not there."""

import sys

import pytest

from taia_hub.common.imports import import_or_raise, when_imported
from taia_hub.errors import MissingDependencyError


@pytest.fixture
def late(tmp_path, monkeypatch):
    """Name of a module that nobody has imported yet; it says so while it runs."""
    (tmp_path / "taia_late.py").write_text("import sys\nsys.ran = getattr(sys, 'ran', []) + ['module']\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "ran", [], raising=False)
    yield "taia_late"
    sys.modules.pop("taia_late", None)


def test_the_call_follows_the_module_once(late):
    when_imported(late, lambda: sys.ran.append("call"))
    assert sys.ran == []
    __import__(late)
    assert sys.ran == ["module", "call"]
    del sys.modules[late]
    __import__(late)
    assert sys.ran == ["module", "call", "module"]


def test_a_module_that_is_there_is_followed_at_once(late):
    when_imported("json", lambda: sys.ran.append("call"))
    assert sys.ran == ["call"]


def test_several_may_wait_for_one_module(late):
    for name in ("first", "second"):
        when_imported(late, lambda name=name: sys.ran.append(name))
    __import__(late)
    assert sorted(sys.ran[1:]) == ["first", "second"]
    assert not [one for one in sys.meta_path if getattr(one, "awaited", None) == late]


def test_looking_for_the_module_is_not_importing_it(late):
    import importlib.util

    when_imported(late, lambda: sys.ran.append("call"))
    assert importlib.util.find_spec(late) is not None
    assert sys.ran == []
    __import__(late)
    assert sys.ran == ["module", "call"]


@pytest.mark.slow
def test_the_package_may_be_imported_twice_before_transformers(clean_process):
    code = """
import importlib, sys
import taia_hub
importlib.reload(taia_hub)
for name in [one for one in sys.modules if one.partition(".")[0] == "taia_hub"]:
    del sys.modules[name]
import taia_hub
from transformers import AutoConfig
print(type(AutoConfig.for_model("taia")).__name__)
"""
    result = clean_process(code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "TAIAConfig"


def test_a_missing_module_says_which_extra_brings_it():
    with pytest.raises(MissingDependencyError, match="taia_nowhere") as error:
        import_or_raise("taia_nowhere", "demo", "LocalHub")
    assert "[demo]" in error.value.hint
