"""The commands for vLLM: plain names, quoted words, and what they cannot be made of."""

import json
import shlex
import shutil
from pathlib import Path

import pytest
from lm_eval.utils import simple_parse_args_string

from taia_hub import TAIAForCausalLM
from taia_hub.cli import main
from taia_hub.engines import config_refusals
from taia_hub.errors import ConfigError, RepositoryError
from taia_hub.evaluation import vllm_commands
from taia_hub.evaluation.vllm import _file_name
from taia_hub.serving import plan_serving


def test_weighted_settings_give_plain_names(online):
    setting = {"attention": 1, "ffn": 0.5}
    export, command = vllm_commands(online.taia, ["mmlu"], [setting])
    words = command.split("--model_args ")[1].split(" ")[0]
    args = simple_parse_args_string(words)

    assert "'" not in command
    assert shlex.split(export)[3:6] == ["--mode", '{"attention": 1.0, "ffn": 0.5}', "--out"]
    assert args["lora_local_path"] == "./adapter-attention-1-ffn-0.5"
    assert args["max_lora_rank"] == 8
    assert args["pretrained"] == online.base
    assert args["dtype"] == "float32"  # as its base is saved; vLLM would take 16 bits
    assert "--output_path results-attention-1-ffn-0.5" in command


def test_a_plain_adapter_is_taken_as_a_repository_is(online):
    whole, export, command = vllm_commands(online.adapter, ["mmlu"], ["all", "attention"])
    args = simple_parse_args_string(whole.split("--model_args ")[1].split(" ")[0])
    assert args["pretrained"] == online.base
    assert (Path(args["lora_local_path"]) / "adapter_model.safetensors").is_file()
    assert shlex.split(export)[2] == online.adapter
    assert "lora_local_path=./adapter-attention" in command


def test_the_model_s_own_tokenizer_is_named_and_a_base_s_is_not(pico, tokenizer, tmp_path):
    folder = shutil.copytree(pico.adapter("llama"), tmp_path / "adapter")
    (plain,) = vllm_commands(str(folder), ["mmlu"], ["all"])
    assert "tokenizer=" not in plain
    tokenizer.save_pretrained(folder)
    for line in vllm_commands(str(folder), ["mmlu"], ["none", "all"]):
        assert f"tokenizer={folder}," in f"{shlex.split(line)[5]},"


def test_the_script_for_vllm_makes_every_folder_that_it_reads(pico, tmp_path, monkeypatch):
    """The lines of `taia export` are run for real, as a shell splits them, in their order."""
    monkeypatch.chdir(tmp_path)
    for label, adapter in {
        "plain": pico.lora("llama", r=1),
        "pattern": pico.lora("llama", rank_pattern={"q_proj": 11}),
        "dora": pico.lora("llama", use_dora=True),
    }.items():
        folder = pico.adapter("llama", adapter, f"vllm-{label}")
        TAIAForCausalLM.from_adapter(pico.base("llama"), folder).save_pretrained(label)
    limits = {"plain": 1, "pattern": 16, "dora": 512}
    for label, limit in limits.items():
        weighted = {"attention": 1, "ffn@0": 1 if label == "dora" else 0.5}
        lines = vllm_commands(label, ["mmlu"], ["none", "attention", weighted, "all"])
        exports = [line for line in lines if line.startswith("taia export ")]
        assert len(exports) == (3 if label == "dora" else 2)  # vLLM takes the others' own adapter
        read = []
        for line in lines:
            if line in exports:
                with pytest.raises(SystemExit) as ended:
                    main(shlex.split(line)[1:])
                assert ended.value.code == 0
                continue
            args = simple_parse_args_string(shlex.split(line)[5])
            assert Path(args["pretrained"], "config.json").is_file()
            if "lora_local_path" in args:
                read.append(args["lora_local_path"])
                assert args["max_lora_rank"] == limit
                config = json.loads(Path(read[-1], "adapter_config.json").read_text())
                assert Path(read[-1], "adapter_model.safetensors").is_file()
                assert config["r"] <= limit
                assert not config_refusals("vllm", config)
        assert len(read) == 3
        for path in Path().glob("adapter-*"):
            shutil.rmtree(path)


def test_a_rank_of_one_has_one_answer(pico, tmp_path):
    TAIAForCausalLM.from_adapter(
        pico.base("llama"), pico.adapter("llama", pico.lora("llama", r=1), "vllm-plain")
    ).save_pretrained(tmp_path / "model")
    (line,) = vllm_commands(str(tmp_path / "model"), ["mmlu"], ["all"])
    assert ",max_lora_rank=1 " in line
    plan = plan_serving(tmp_path / "model", "vllm", ["all"], out=tmp_path / "served")
    assert "--max-lora-rank 1 " in " ".join(plan.commands[-1].words)
    card = (tmp_path / "model" / "README.md").read_text()  # of a base on this disk, it names no command
    assert "vllm" not in card


def test_two_settings_never_share_a_name():
    assert _file_name("ffn=0.5", []) == "ffn-0.5"
    assert _file_name("ffn@0.5", ["ffn-0.5"]) == "ffn-0.5-2"
    assert _file_name("../*", []) == "mode"
    assert len(_file_name("attention@0=1, " * 40, [])) <= 80


def test_a_folder_with_a_comma_is_refused(pico, tmp_path):
    folder = tmp_path / "a,b"
    pico.taia("llama").save_pretrained(folder)
    with pytest.raises(ConfigError, match="--model_args take no comma"):
        vllm_commands(str(folder), ["mmlu"], ["all"])


def test_words_are_quoted(online):
    (command,) = vllm_commands(online.taia, ["mmlu"], ["none"], system_instruction="it's; rm", max_gen_toks=5)
    assert """--system_instruction 'it'"'"'s; rm'""" in command
    assert "--gen_kwargs max_gen_toks=5" in command


@pytest.mark.parametrize(
    ("tasks", "error", "message"),
    [
        ([], ConfigError, "No task was given"),
        (["mmul"], ConfigError, "no task 'mmul'. Did you mean 'mmlu'"),
        (["no_such_*"], ConfigError, "No task matches"),
        (["missing.yaml"], RepositoryError, "no task file 'missing.yaml'"),
    ],
)
def test_commands_for_no_task_are_refused(tasks, error, message):
    with pytest.raises(error, match=message):
        vllm_commands("no/model", tasks, ["none"])
