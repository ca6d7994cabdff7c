"""`taia check`: what is printed, and the exit code."""

import json

import pytest

from taia_hub.cli import main
from taia_hub.exporting import export_adapter


@pytest.fixture
def taia_check(capsys):
    def call(*words):
        with pytest.raises(SystemExit) as ended:
            main(["check", *map(str, words)])
        shown = capsys.readouterr()
        return ended.value.code, shown.out, shown.err

    return call


@pytest.fixture(scope="module")
def dora(pico):
    return pico.adapter("llama", pico.lora("llama", r=3, use_dora=True), "check-dora")


@pytest.fixture(scope="module")
def saved(pico):
    lora = pico.lora("llama", r=3, rank_pattern={"q_proj": 5}, modules_to_save=["lm_head"])
    return pico.adapter("llama", lora, "check-saved")


def test_every_engine_and_its_reason_are_printed(taia_check, dora, saved):
    code, text, _ = taia_check(dora)
    assert code == 0  # PEFT takes it
    assert text.startswith("vllm      refuses it\n  DoRA is not served\n    by vllm-project/vllm ")
    assert "peft      takes it as it is" in text
    assert f"`taia export {dora} --mode all --out DIR`" in text
    assert "`taia merge`" in text
    code, text, _ = taia_check(saved)
    assert code == 0
    assert "modules_to_save=['lm_head'] is not served" in text
    assert "rank_pattern gives modules values of their own" in text


def test_one_engine_gives_the_exit_code(taia_check, dora, pico, tmp_path):
    assert taia_check(dora, "--engine", "vllm")[0] == 1
    assert taia_check(dora, "--engine", "peft")[0] == 0
    code, _, error = taia_check(dora, "--engine", "vlm")
    assert code == 1
    assert "Did you mean 'vllm'" in error
    export_adapter(dora, tmp_path / "out", "all")
    code, text, _ = taia_check(tmp_path / "out", "--engine", "vllm")
    assert code == 0
    assert "taia export" not in text


def test_json_is_for_programs(taia_check, saved):
    code, text, _ = taia_check(saved, "--engine", "llama.cpp", "--json")
    found = json.loads(text)
    assert code == 1
    assert found["adapter"] == str(saved)
    assert found["base_was_read"] is True
    (engine,) = found["engines"].values()
    assert engine["takes"] is False
    assert all(set(one) == {"reason", "source"} for one in engine["refusals"])


def test_what_is_no_adapter_is_an_error(taia_check, tmp_path):
    code, _, error = taia_check(tmp_path)
    assert code == 1
    assert "has no adapter_config.json" in error
