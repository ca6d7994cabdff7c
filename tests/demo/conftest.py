"""A tokenizer with a chat template, a random base model with it, and short items."""

import os
from pathlib import Path

import pytest

from taia_hub.demo.samples import Item

ITEMS = [
    Item.single("1", "what is gout", "a joint"),
    Item.single("2", "who", "the cat and the dog"),
    Item.single("3", "why is it", "no"),
]


@pytest.fixture(scope="session")
def chat_tokenizer(tokenizer):
    folder = Path(os.environ["HF_HOME"]) / "demo-tokenizer"
    tokenizer.save_pretrained(folder)
    clone = type(tokenizer).from_pretrained(folder)
    clone.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}?{% else %} {{ m.content }}{{ eos_token }}"
        "{% endif %}{% endfor %}{% if add_generation_prompt %} {% endif %}"
    )
    return clone


@pytest.fixture
def chat_base(pico, chat_tokenizer, tmp_path):
    """The folder of a random base model with a tokenizer that has a chat template."""
    pico.plain("llama").save_pretrained(tmp_path / "tiny")
    chat_tokenizer.save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"
