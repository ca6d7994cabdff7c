"""`taia eval`: words that it cannot use."""

import pytest

from taia_hub.cli import main


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
