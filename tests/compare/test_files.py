"""Files of comparisons: answers are taken again only where all is the same that they depend on."""

import copy

import pytest

from taia_hub.compare.files import compare_file
from taia_hub.errors import ConfigError
from taia_hub.evaluation.environment import identify


def _template(model, tokenizer):
    tokenizer.chat_template = tokenizer.chat_template.replace("?", "!")


def _special(model, tokenizer):
    tokenizer.bos_token = "a"


def _generation(model, tokenizer):
    model.generation_config.eos_token_id = 7


def _device(model, tokenizer):
    model.to("meta")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_template, "the chat template is another now"),
        (_special, "the tokenizer is another now"),
        (_generation, "the generation settings are others now"),
        (_device, "the device is another now"),
    ],
)
def test_answers_of_other_inputs_are_refused_by_name(pico, tokenizer, tmp_path, change, said):
    model, tokenizer = pico.taia("llama"), copy.deepcopy(tokenizer)
    tokenizer.chat_template = "{% for one in messages %}{{ one['content'] }} ? {% endfor %}"
    (tmp_path / "p.jsonl").write_text('{"prompt": "the"}\n')
    identity, out = identify(model), tmp_path / "out.jsonl"

    def run(tokenizer=tokenizer):
        return compare_file(model, tokenizer, tmp_path / "p.jsonl", out, identity, ["none", "all"], max_new_tokens=2)

    first, before = run(), out.read_bytes()
    assert run(copy.deepcopy(tokenizer)) == first
    tokenizer.pad([{"input_ids": [1]}, {"input_ids": [1, 2]}])  # what was called meanwhile is no other tokenizer
    assert run() == first
    change(model, tokenizer)
    with pytest.raises(ConfigError, match=f"holds comparisons from before: {said}"):
        run()
    assert out.read_bytes() == before
