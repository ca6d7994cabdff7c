"""Expressions of others: real ones pass, and none can stop the process."""

import json
import shutil
import time

import pytest

from taia_hub import TAIAForCausalLM
from taia_hub.common import patterns
from taia_hub.common.patterns import check_patterns
from taia_hub.engines import BaseFacts, check_engine
from taia_hub.errors import ConfigError
from taia_hub.exporting import export_adapter
from taia_hub.repository.creating import create_repository

NAMES = [f"model.layers.{layer}.{name}" for layer in range(40) for name in ("self_attn.q_proj", "mlp.down_proj")]
NAMES += [f"model.visual.blocks.{layer}.attn.qkv" for layer in range(20)]


@pytest.fixture
def soon(monkeypatch):
    monkeypatch.setattr(patterns, "_SECONDS", 1)
    patterns._slow.cache_clear()


@pytest.mark.parametrize(
    "pattern",
    [
        r".*\.(q_proj|v_proj)$",
        r"model\.layers\.\d+\.(self_attn|mlp)\.(q|k|v|o|gate|up|down)_proj",
        r"^(?!.*patch_embed).*(?:q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj).*",
        r"(?:.*?(?:language|text).*?(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense).*?(?:q_proj|k_proj|v_proj|"
        r"o_proj|gate_proj|up_proj|down_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|attention|attn|mlp)\."
        r"(?:(?:q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)))",
        r"^(language_model|model)(?=\.).*\.(?:\w+\.)*(o_proj|q_proj|down_proj)$",
        "[a-z",
        "(",
    ],
)
def test_what_people_write_passes(soon, pattern):
    check_patterns({"target_modules": pattern, "rank_pattern": {pattern: 4}}, NAMES, where="adapter_config.json")


@pytest.mark.parametrize(
    "values",
    [
        {"alpha_pattern": {r"(\w+\.?)+!": 2}},
        {"exclude_modules": "(.*)*!"},
        [[".*" * 12 + "="]],
        {"target_modules": "(.|.)*!"},
        {"rank_pattern": {"(?x) (\\w|.) # any\n +!": 4}},
    ],
)
def test_what_would_not_end_is_refused_in_time(soon, values):
    start = time.monotonic()
    with pytest.raises(ConfigError, match="would not end") as caught:
        check_patterns(values, NAMES, where="adapter_config.json")
    assert caught.value.hint
    assert time.monotonic() - start < patterns._PATIENCE + 5


def test_where_no_process_can_be_started_nothing_is_tried_here(soon, monkeypatch):
    def none_left(*args, **kwargs):
        raise BlockingIOError("no process is left")

    monkeypatch.setattr(patterns.subprocess, "run", none_left)
    with pytest.raises(ConfigError, match="none can be started: no process is left") as caught:
        check_patterns({"target_modules": ".*(q|v).*"}, NAMES, where="adapter_config.json")
    assert caught.value.hint
    check_patterns({"target_modules": ".*q_proj"}, NAMES, where="adapter_config.json")


def test_numbers_and_lengths_are_bounded():
    with pytest.raises(ConfigError, match=r"2,001 expressions"):
        check_patterns({f".*{number}.*": 1 for number in range(2001)}, NAMES, where="it")
    with pytest.raises(ConfigError, match=r"expression of 40,000 characters"):
        check_patterns({"target_modules": "a*" * 20_000}, NAMES, where="it")


@pytest.mark.parametrize("field", ["target_modules", "alpha_pattern"])
@pytest.mark.parametrize("door", ["from_adapter", "create", "export"])
def test_an_adapter_cannot_stop_a_process(pico, tmp_path, soon, door, field):
    adapter = shutil.copytree(pico.adapter("llama"), tmp_path / "adapter")
    pattern = r"(?:.*(?:\w+\.?)+)+!|.*[qv]_proj"
    values = json.loads((adapter / "adapter_config.json").read_text())
    values[field] = {pattern: 2} if field == "alpha_pattern" else pattern
    (adapter / "adapter_config.json").write_text(json.dumps(values))
    base = pico.base("llama")
    calls = {
        "from_adapter": lambda: TAIAForCausalLM.from_adapter(base, adapter),
        "create": lambda: create_repository(str(base), str(adapter), out=tmp_path / "out"),
        "export": lambda: export_adapter(adapter, tmp_path / "out", "all"),
    }
    with pytest.raises(ConfigError, match="would not end"):
        calls[door]()
    assert not (tmp_path / "out").exists()


def test_an_adapter_that_is_checked_for_engines_cannot_stop_a_process(soon):
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 8, "target_modules": r"(\w+\.?)+!"}
    shapes = {f"base_model.model.{name}.lora_{factor}.weight": (8, 8) for name in NAMES for factor in "AB"}
    with pytest.raises(ConfigError, match="would not end"):
        check_engine("peft", config, shapes, BaseFacts(frozenset(NAMES), frozenset()))
