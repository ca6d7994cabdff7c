"""The commands for vLLM: plain names, quoted words, and what they cannot be made of."""

import pytest
from lm_eval.utils import simple_parse_args_string

from taia_hub.errors import ConfigError, RepositoryError
from taia_hub.evaluation import vllm_commands
from taia_hub.evaluation.vllm import _file_name


def test_weighted_settings_give_plain_names(online):
    setting = {"attention": 1, "ffn": 0.5}
    comment, command = vllm_commands(online.taia, ["mmlu"], [setting])
    words = command.split("--model_args ")[1].split(" ")[0]
    args = simple_parse_args_string(words)

    assert "'" not in command
    assert "attention=1, ffn=0.5" in comment
    assert args["lora_local_path"] == "./adapter-attention-1-ffn-0.5"
    assert args["max_lora_rank"] == 8
    assert args["pretrained"] == online.base
    assert "--output_path results-attention-1-ffn-0.5" in command


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
