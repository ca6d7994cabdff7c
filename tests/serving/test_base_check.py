"""The check of a started server: whether it answers for the base as the base beside a request with a LoRA."""

import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from taia_hub.engines import ENGINES, Command, Order, ServedMode
from taia_hub.errors import ConfigError
from taia_hub.serving import planning, run
from taia_hub.serving.base_check import check_base

BASE, LORA = [[" Paris", ".", "\n", "It"], [-1.0, -0.5, -0.5, -2.0]], [[" a", " b", " c", " d"], [-2.0, -3.0, -3.0, -1]]


def moved(answer, by):
    return [answer[0], [one + by for one in answer[1]]]


@pytest.fixture
def server(monkeypatch):
    """A server past any proxy whose base answers `beside` while the LoRA streams; a function says what is found."""

    monkeypatch.setattr("urllib.request._opener", None)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")

    class Handler(BaseHTTPRequestHandler):
        streaming = 0

        def do_GET(self):
            self.send_response(200 if self.headers.get("authorization") == "Bearer key" else 401)
            self.end_headers()

        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()
            if asked.get("stream"):
                Handler.streaming += 1  # before whoever reads on asks for the base
                self.wfile.write(b"data: {}\n\n")
                return
            given = self.server.lora if asked["model"] == "m:all" else self.server.beside
            given = BASE if asked["model"] == "m:none" and not Handler.streaming else given
            body = given and dict(zip(("tokens", "token_logprobs"), given, strict=True))
            self.wfile.write(json.dumps({"choices": [{"logprobs": body}]}).encode())

        def log_message(self, *_):
            pass

    found = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=found.serve_forever, args=(0.01,), daemon=True).start()

    def check(beside, lora=LORA, key="key"):
        found.beside, found.lora, Handler.streaming = beside, lora, 0
        wrong = check_base(f"http://127.0.0.1:{found.server_port}/v1", "m:none", "m:all", key=key)
        return wrong and str(wrong)

    yield check
    found.shutdown()
    found.server_close()


def test_the_base_beside_a_lora_is_the_base(server):
    assert server(BASE) is None
    assert server(moved(BASE, 2e-5)) is None
    assert server(moved(BASE, 0.1)) is None  # 16 bits, another batch
    assert server([[" Paris", " in", "x", "y"], [-1.0, -0.5001, -9, -9]]) is None  # two that are as likely


def test_an_answer_of_the_lora_is_found(server):
    assert "'m:none' answers otherwise beside a request for 'm:all' than alone" in server(LORA)
    assert "Leave --max-loras out" in server(LORA)
    weak = moved(BASE, -0.05)
    assert "differ by 0.05" in server(weak, lora=weak)  # of a weak LoRA
    assert "another mode" in server([[" x", " y", " z", " w"], [-2.07, -1, -1, -1]])  # of a third one


def test_a_server_that_cannot_be_asked_is_no_wrong_one(server):
    unknown = ([[], []], [["x"], [None]], [["x"], [float("nan")]])
    for beside, key in ((None, "key"), (BASE, None), *((one, "key") for one in unknown)):
        with pytest.raises(OSError, match=r"unexpected answer|401"):
            server(beside, key=key)
    assert check_base("http://127.0.0.1:9/v1", "m:none", "m:all", alive=lambda: False) is None


def test_what_speaks_no_http_is_not_waited_for():
    """As a server whose certificate the user named behind `--`."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=lambda: listening.accept()[0].close(), daemon=True).start()
        with pytest.raises(OSError, match=r"reset|closed"):
            check_base(f"http://127.0.0.1:{listening.getsockname()[1]}/v1", "m:none", "m:all")


def test_an_address_of_ipv6_has_brackets(tmp_path):
    order = Order("m", "org/base", host="::1")
    assert planning.ServingPlan(ENGINES["vllm"], order, (), (), tmp_path).url == "http://[::1]:8000/v1"


WAITS = Command((("python", "-c", "import time; time.sleep(60)"),))


def test_a_wrong_server_is_ended_with_an_error():
    with pytest.raises(ConfigError, match=r"(?s)as another.*Leave it"):
        run(WAITS, lambda alive: ConfigError("The base answers as another.", "Leave it.") if alive() else None)


def test_a_check_that_fails_is_a_note(caplog):
    def check(alive):
        if alive():
            raise OSError("no answer")

    assert run(Command((("python", "-c", "import time; time.sleep(0.3)"),)), check) == 0
    assert "was not checked: no answer" in caplog.text


def test_only_what_may_be_mixed_up_is_asked(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(planning, "check_base", lambda *words, **keywords: asked.append((words, keywords["key"])))
    modes = tuple(ServedMode(label, tmp_path, 8) for label in ("attention", "all"))
    for engine, served in (("vllm", modes), ("vllm", ()), ("sglang", modes)):
        order = Order("m", "org/base", modes=(*served, ServedMode("none")), extra=("--api-key=k",))
        planning.ServingPlan(ENGINES[engine], order, (), (), tmp_path).check(lambda: True)
    assert asked == [(("http://127.0.0.1:8000/v1", "m:none", "m:all"), "k")]
