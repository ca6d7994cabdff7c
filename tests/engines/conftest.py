"""A real model on which engines are tried, SmolLM2 in float32, and this package's own answers of each mode."""

import json
import socket
import time

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from taia_hub import TAIAForCausalLM, hub
from taia_hub.engines.gguf_base import write_gguf_base
from tests.conftest import made_once

QUESTIONS = (
    "What is the capital of France?",
    "Write a short poem about rain.",
    "List three fruits.",
    "Explain gravity to a child.",
    "What is 7 times 8?",
    "Name a famous painter.",
    "Translate 'good morning' to Spanish.",
    "Give me advice for sleeping better.",
    "What do bees make?",
    "Tell me a fact about the moon.",
)
CHATS = [[{"role": "system", "content": "Hi"}, {"role": "user", "content": question}] for question in QUESTIONS]
"""The messages of each question; the template's own system message is longer, and is read by every setting again."""
LENGTH = 10


@pytest.fixture(scope="session")
def real_base(smollm2, shared):
    """SmolLM2 in float32: merging into 16 bits would round."""

    def make(folder):
        AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).save_pretrained(folder)
        AutoTokenizer.from_pretrained(smollm2).save_pretrained(folder)

    return made_once(shared / "real-base", make)


@pytest.fixture(scope="session")
def real_repository(real_base, shared):
    """A TAIA repository of a random LoRA on every linear layer, large enough to change answers."""

    def make(folder):
        lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
        torch.manual_seed(1)
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(real_base), lora)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.add_(torch.randn_like(parameter) * 0.04)
        model.save_pretrained(folder / "adapter")
        TAIAForCausalLM.from_adapter(real_base, folder / "adapter").save_pretrained(folder / "model")

    return made_once(shared / "real", make) / "model"


@pytest.fixture(scope="session")
def real_gguf(real_base, shared):
    """`real_base` as GGUF, in float32."""
    pytest.importorskip("gguf")

    def make(path):
        write_gguf_base(hub.Source(str(real_base), real_base, None), path)

    return made_once(shared / "real.gguf", make)


SETTINGS = {
    "none": "none",
    "attention": "attention",
    "ffn": "ffn",
    "all": "all",
    "attention-1-ffn-0.5": {"attention": 1, "ffn": 0.5},
}
"""Slug of a setting to the setting."""
BY_LAYERS = {
    "attention-1.5-ffn-0-14-minus0.5": {"attention": 1.5, "ffn@0-14": -0.5, "allow_extrapolation": True},
}
"""One more, which tells layers apart and goes beyond what was trained."""


@pytest.fixture(scope="session")
def ours(real_repository, real_base, shared):
    """This package's greedy answers in full precision: slug of a setting to the token ids, a row a question."""

    def make(path):
        model = TAIAForCausalLM.from_pretrained(real_repository).eval()
        settings = SETTINGS | BY_LAYERS
        answers = {slug: [] for slug in settings}
        for ids in prompts(real_base):
            rows = torch.tensor([ids] * len(settings))  # one batch, a setting a row
            made = model.generate(
                rows,
                attention_mask=torch.ones_like(rows),
                max_new_tokens=LENGTH,
                do_sample=False,
                inference_modules=list(settings.values()),
            )
            for row, slug in zip(made[:, len(ids) :].tolist(), answers, strict=True):
                ends = [place for place, token in enumerate(row) if token == model.generation_config.eos_token_id]
                answers[slug].append(row[: ends[0] + 1] if ends else row)
        path.write_text(json.dumps(answers))

    return json.loads(made_once(shared / "real-answers.json", make).read_text())


@pytest.fixture(scope="session")
def texts(ours, real_base):
    """The answers of `ours` as texts."""
    tokenizer = AutoTokenizer.from_pretrained(real_base)
    return {slug: [tokenizer.decode(row, skip_special_tokens=True) for row in rows] for slug, rows in ours.items()}


def prompts(base):
    """Returns the token ids of the questions as chats, by the tokenizer of a folder."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    return [
        tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False) for messages in CHATS
    ]


def wait(process, port):
    deadline = time.monotonic() + 240
    while not reachable(port):
        assert process.poll() is None, f"the server ended with {process.returncode}"
        assert time.monotonic() < deadline
        time.sleep(0.1)


def reachable(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def ask(client, model, messages, **extra):
    answer = client.chat.completions.create(
        model=model,
        messages=messages,
        temperature=0,
        max_tokens=LENGTH,
        extra_body=extra,
    )
    return answer.choices[0].message.content
