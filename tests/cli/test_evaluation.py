"""`taia eval`: words that it cannot use, and where its results go."""

import pytest

from taia_hub.cli import main
from taia_hub.cli.evaluation import _results_file


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--backend", "vllm", "--task", "mmlu", "--prompts", "p.txt"],
            "--prompts cannot be part of commands for vLLM",
        ),
        (["--backend", "vllm", "--task", "mmlu", "--include-path", "."], "--include-path cannot be part of"),
        (["--task", "mmlu", "--batch-size", "many"], "batch_size='many' is no batch size"),
    ],
)
def test_the_command_refuses_words_that_it_cannot_use(words, message, capsys):
    with pytest.raises(SystemExit):
        main(["eval", "org/model", *words])
    assert message in capsys.readouterr().err


def test_models_of_one_name_have_a_results_file_each(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert str(_results_file("a/lora")) == "a--lora.results.json"
    assert str(_results_file("b/lora")) == "b--lora.results.json"


@pytest.mark.parametrize("text", ["{", "[]", '{"model": 3}', ""])
def test_a_damaged_results_file_of_anybody_is_passed_over(monkeypatch, tmp_path, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taia_results.json").write_text(text)
    assert str(_results_file("a/lora")) == "a--lora.results.json"
    assert (tmp_path / "taia_results.json").read_text() == text
