"""The front of llama.cpp's server, before a server that says what it was asked."""

import gzip
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from starlette.testclient import TestClient

from taia_hub.engines.llamacpp_front import make_app

MODELS = {"m:all": [{"id": 0, "scale": 1.0}], "m:none": [{"id": 0, "scale": 0.0}]}


class Behind(BaseHTTPRequestHandler):
    """Answers with what came, compressed wherever that is accepted."""

    def do_GET(self):
        body = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))) or "{}")
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
    threading.Thread(target=server.serve_forever, daemon=True).start()
    app = make_app(f"http://127.0.0.1:{server.server_port}", MODELS, "taia")
    with TestClient(app, root_path=request.param) as client:
        yield lambda method, path, **more: client.request(method, f"{request.param}{path}", **more)
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("accepted", ["gzip, br", "identity"])
def test_a_request_gets_the_scales_of_its_mode_and_the_answer_its_name(front, accepted):
    for path in ("/v1/chat/completions", "/infill"):
        answer = front("POST", path, json={"model": "m:none"}, headers={"accept-encoding": accepted})
        assert answer.status_code == 200, answer.text
        assert "content-encoding" not in answer.headers
        said = answer.json()
        assert (said["model"], said["path"], said["asked"]["lora"]) == ("m:none", path, MODELS["m:none"])
    assert front("POST", "/v1/embeddings", json={}).json()["error"]["code"] == "not_served"
    assert front("POST", "/tokenize", json={}).json()["path"] == "/tokenize"


def test_the_models_are_those_of_the_modes_also_where_the_answer_would_be_compressed(front):
    for path in ("/v1/models", "/models"):
        answer = front("GET", path, headers={"accept-encoding": "gzip"})
        assert [one["id"] for one in answer.json()["data"]] == list(MODELS)
        refused = front("GET", path, headers={"accept-encoding": "gzip", "authorization": "wrong"})
        assert (refused.status_code, refused.json()["path"]) == (401, "/v1/models")


def test_what_else_is_asked_for_comes_as_it_is_accepted(front):
    assert front("GET", "/props", headers={"accept-encoding": "gzip"}).headers["content-encoding"] == "gzip"
    plain = front("GET", "/props", headers={"accept-encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert plain.json()["path"] == "/props"
