"""The front of llama.cpp's server, before a server that says what it was asked."""

import asyncio
import gzip
import json
import subprocess
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from starlette.testclient import TestClient

from taia_hub.engines.llamacpp_front import make_app
from taia_hub.engines.parts import Module, Served, split
from taia_hub.switch.settings import parse_setting

ATTENTION, FFN, IDLE, HEAD = split(
    [
        *(Module(f"l.{layer}.attn", "attention", layer) for layer in (0, 1)),
        *(Module(f"l.{layer}.mlp", "ffn", layer) for layer in (0, 1, 2)),
        Module("lm_head", "other", None),
    ],
    [parse_setting({"ffn@2": 0.5})],
)
SERVED = Served(
    "m",
    {
        "m:half": parse_setting({"attention": 1, "ffn": 0.5}),
        "m": parse_setting("attention"),
        "m:none": parse_setting("none"),
    },
    (
        replace(ATTENTION, path="a.gguf"),
        IDLE,  # nothing acts in it: the LoRAs behind it have numbers of their own
        replace(FFN, path="f.gguf"),
        replace(HEAD, refused="it is an embedding."),
    ),
)


def scales(*values):
    return [{"id": place, "scale": value} for place, value in enumerate(values)]


class Behind(BaseHTTPRequestHandler):
    """Answers with what came, compressed wherever that is accepted."""

    def do_GET(self):
        body = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))) or "{}")
        assert "transfer-encoding" not in self.headers
        if body.get("waits"):  # an answer that is not there before the client leaves
            self.server.left = self.connection.recv(1) == b""
            return
        said = {"model": "taia", "path": self.path, "asked": body, "data": [{"id": "taia"}], "models": [{}]}
        content = json.dumps(said, separators=(",", ":")).encode()
        compressed = "gzip" in self.headers.get("accept-encoding", "gzip")
        content = gzip.compress(content) if compressed else content
        self.send_response(401 if self.headers.get("authorization") == "wrong" else 200)
        if compressed:
            self.send_header("content-encoding", "gzip")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture(params=["", "/behind/a/proxy"])
def front(request):
    """A function that asks the front of a server, under a root path as uvicorn hands it on, or none."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Behind)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    app = make_app(f"http://127.0.0.1:{server.server_port}", SERVED, "taia")
    with TestClient(app, root_path=request.param) as client:

        def ask(method, path, **more):
            return client.request(method, f"{request.param}{path}", **more)

        ask.app, ask.server = app, server
        yield ask
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("accepted", ["gzip, br", "identity"])
def test_a_request_gets_the_scales_of_its_mode_and_the_answer_its_name(front, accepted):
    for path in ("/v1/chat/completions", "/infill"):
        answer = front("POST", path, json={"model": "m:none"}, headers={"accept-encoding": accepted})
        assert answer.status_code == 200, answer.text
        assert "content-encoding" not in answer.headers
        said = answer.json()
        assert (said["model"], said["path"], said["asked"]["lora"]) == ("m:none", path, scales(0, 0))
    assert front("POST", "/v1/embeddings", json={}).json()["error"]["code"] == "not_served"
    assert front("POST", "/tokenize", json={}).json()["path"] == "/tokenize"


def test_the_models_are_those_of_the_modes_also_where_the_answer_would_be_compressed(front):
    for path in ("/v1/models", "/models"):
        answer = front("GET", path, headers={"accept-encoding": "gzip"})
        assert [one["id"] for one in answer.json()["data"]] == ["m:half", "m", "m:none"]
        refused = front("GET", path, headers={"accept-encoding": "gzip", "authorization": "wrong"})
        assert (refused.status_code, refused.json()["path"]) == (401, "/v1/models")


def test_what_else_is_asked_for_comes_as_it_is_accepted(front):
    assert front("GET", "/props", headers={"accept-encoding": "gzip"}).headers["content-encoding"] == "gzip"
    plain = front("GET", "/props", headers={"accept-encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert plain.json()["path"] == "/props"


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, (1, 0.5)),
        ({"model": ""}, (1, 0.5)),
        ({"model": "m"}, (1, 0)),
        ({"model": "m:half"}, (1, 0.5)),
        ({"model": "m:TAIF", "inference_modules": None}, (0, 1)),
        ({"model": "m:attention+ffn"}, (1, 1)),
        ({"model": 'm:{"attention": 0.25, "l.*.mlp": 1}'}, (0.25, 1)),
        ({"inference_modules": "ffn"}, (0, 1)),
        ({"model": 'm:{"attention": 1.5, "ffn": -1, "allow_extrapolation": true}'}, (1.5, -1)),
        ({"inference_modules": {"*@0-2": [0.5, 0.5]}}, (0.5, 0.5)),
        ({"model": "m", "inference_modules": {"ffn": 0.5}}, (0, 0.5)),
        ({"model": "m:none", "inference_modules": "base"}, (0, 0)),
        ({"model": "m:half", "inference_modules": {"ffn": 0.5, "attention": 1.0}}, (1, 0.5)),
    ],
)
def test_every_scale_of_a_setting_is_sent(front, asked, expected):
    said = front("POST", "/v1/completions", json={**asked, "prompt": "x", "stream": True}).json()
    assert said["asked"]["lora"] == scales(*expected)
    assert said["asked"]["prompt"] == "x"
    assert "inference_modules" not in said["asked"]
    named = "m" if "inference_modules" in asked and "model" not in asked else "m:half"
    assert said["model"] == (asked.get("model") or named)


@pytest.mark.parametrize(
    ("asked", "status", "code", "param", "message"),
    [
        ({"model": "n"}, 404, "model_not_found", "model", "The models are m:half, m, m:none; any other setting"),
        ({"model": ["m"]}, 404, "model_not_found", "model", "There is no model ['m'] here."),
        ({"model": "m:atention"}, 404, "model_not_found", "model", "Did you mean 'attention'? Choose one of"),
        ({"model": "m:{1}"}, 404, "model_not_found", "model", "is no JSON"),
        ({"model": "m:all"}, 400, "invalid_inference_modules", "model", "'other', which is not served here: it is an"),
        ({"model": "m:ffn@0"}, 404, "model_not_found", "model", "Unknown inference modules 'ffn@0'"),
        ({"inference_modules": {"ffn@0": 1}}, 400, None, None, """Start the server with --mode '{"ffn@0": 1.0}'"""),
        ({"inference_modules": {"ffn@7": 1}}, 400, None, None, "'ffn@7' matches none of the model's 6 adapted modules"),
        ({"inference_modules": ["all"]}, 400, None, None, "A list of 1 settings came where one setting is expected"),
        ({"inference_modules": {"ffn": 1.5}}, 400, None, None, "from 0 (masked) to 1 (acts in full)"),
        ({"model": 'm:{"ffn": -1}'}, 404, "model_not_found", "model", '"allow_extrapolation": true'),
        ({"inference_modules": {"ffn@0-2": [0, 1]}}, 400, None, None, "'ffn@0-1' would get the weights 0, 0.5"),
        ({"inference_modules": 1}, 400, None, None, "cannot be 1 of type int"),
        ({"model": "m:none", "inference_modules": "ffn"}, 400, None, None, "'m:none' came with another setting in"),
        ({"model": "m", "lora": [{"id": 0, "scale": 2}]}, 400, "lora", "lora", "Write a setting into 'inference_mod"),
    ],
)
def test_what_is_not_served_is_an_error_of_openai(front, asked, status, code, param, message):
    answer = front("POST", "/v1/chat/completions", json=asked)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"]) == (status, "invalid_request_error")
    assert error["code"] == (code or "invalid_inference_modules")
    assert error["param"] == (param or "inference_modules")
    assert message in error["message"]


TWICE = b'{"inference_modules": {"ffn": 1, "*": 0.5, "ffn": 0}}'


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"\xff", b"[" * 9999, b'{"model": "\\ud800"}', TWICE])
def test_a_body_that_is_no_object_is_refused(front, body):
    answer = front("POST", "/v1/completions", content=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_json")


def test_a_server_that_is_gone_is_said():
    with TestClient(make_app("http://127.0.0.1:9", SERVED, "taia")) as client:
        answer = client.post("/v1/completions", json={"model": "m"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (502, "no_answer")
        listed = client.get("/v1/models")
        assert (listed.status_code, listed.json()["error"]["code"]) == (502, "no_answer")


def test_the_front_starts_without_torch():
    heavy = "{'torch', 'transformers', 'peft', 'numpy'}"
    script = f"import sys, taia_hub.engines.llamacpp_front; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize("path", ["/%00", "/a%7Fb", "/a%3Fb", "/x//y", "/a%23b?c=%0A&c=d"])
def test_a_path_is_passed_on_as_it_came(front, path):
    assert front("GET", path).json()["path"] == path


def test_a_page_of_another_origin_may_read_a_refusal(front):
    answer = front("POST", "/v1/completions", json={"model": "n"}, headers={"origin": "http://page"})
    assert answer.headers["access-control-allow-origin"] == "http://page"


def test_a_setting_that_says_something_twice_is_none(front):
    """Of keys that come twice Python keeps the first one's place and the last one's value."""
    answer = front("POST", "/v1/completions", json={"model": 'm:{"ffn": 1, "l.*": 0.5, "ffn": 0}'})
    assert "the key 'ffn' comes twice" in answer.json()["error"]["message"]


def test_what_the_front_cannot_pass_on_is_an_error_of_openai(front):
    answer = front("GET", "/" + ":" * 30_000)
    assert (answer.status_code, answer.json()["error"]["code"]) == (414, "invalid_path")


@pytest.mark.parametrize(
    "headers", [{"x-title": b"\xfc"}, {"authorization": b"Bearer \xe4\xb8"}, {"expect": "100-continue"}]
)
def test_headers_of_any_letters_are_passed_on(front, headers):
    assert front("GET", "/v1/models", headers=headers).status_code == 200
    assert front("POST", "/v1/completions", json={"model": "m"}, headers=headers).status_code == 200


def test_a_body_in_pieces_is_sent_as_a_whole(front):
    answer = front("POST", "/v1/completions", content=iter([b'{"model":', b' "m"}']))
    assert answer.json()["asked"]["lora"] == scales(1, 0)
    assert front("HEAD", "/v1/models").status_code == 200


def test_what_nobody_waits_for_is_ended(front):
    """A whole answer comes at its end: until then llama.cpp knows by the connection alone that its client is there."""
    body = json.dumps({"model": "m", "waits": True}).encode()
    coming = [{"type": "http.request", "body": body}, {"type": "http.disconnect"}]
    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "query_string": b"", "headers": []}

    async def receive():
        await asyncio.sleep(0.05)
        return coming.pop(0)

    async def send(message):
        said.append(message)

    said = []
    asyncio.run(asyncio.wait_for(front.app(scope, receive, send), 5))
    assert said[0]["status"] == 499
    for _ in range(100):
        if hasattr(front.server, "left"):
            break
        threading.Event().wait(0.01)
    assert front.server.left
