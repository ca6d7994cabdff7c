"""The page without a browser: its endpoint for programs, its limits, its votes, and twenty callers at once."""

import gc
import importlib.util
import json
import pickle
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import torch
from huggingface_hub import constants

from taia_hub import TAIAForCausalLM
from taia_hub.common.devices import placement
from taia_hub.compare import Comparison, compare
from taia_hub.compare.comparison import ComparedAnswer
from taia_hub.errors import ConfigError, OutOfMemoryError, RepositoryError, SettingError
from taia_hub.page import PageSettings, launch_page
from taia_hub.page.answering import expected_seconds
from taia_hub.page.board import Turn, board_html, status_text
from taia_hub.page.conversation import ask, histories_of, stop, vote
from taia_hub.page.devices import choose_dtype, zero_gpu
from taia_hub.page.models import Models
from taia_hub.page.questions import Question, column_name, read_question
from taia_hub.repository.tokenizer import load_tokenizer
from taia_hub.switch.settings import parse_setting

gradio_client = pytest.importorskip("gradio_client")
SETTINGS = PageSettings("org/model")


@pytest.fixture
def page(online, tmp_path, monkeypatch):
    """The running page of a random model, in the dtype that the answers are compared in."""
    monkeypatch.setattr("taia_hub.page.models.choose_dtype", lambda device: torch.float32)
    running = []

    def start(**settings):
        chosen = PageSettings(online.taia, votes=tmp_path / "votes.jsonl", **settings)
        running.append(launch_page(settings=chosen, token=online.hub.token, block=False, quiet=True))
        return running[-1]

    yield start
    for one in running:
        one.close()


@pytest.fixture(scope="module")
def brief(_published, tmp_path_factory):
    """A running page that takes short prompts and only refuses them."""
    votes = tmp_path_factory.mktemp("votes") / "votes.jsonl"
    settings = PageSettings(_published.taia, votes=votes, max_prompt_characters=500)
    running = launch_page(settings=settings, token=_published.hub.token, block=False, quiet=True)
    yield running
    running.close()


def client_of(page):
    return gradio_client.Client(page.local_url, verbose=False, download_files=False)


def decoding():
    return [thread for thread in threading.enumerate() if thread.name == "taia-decode"]


def wait_until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    assert condition()


def side_by_side(*modes, text="an answer", finished="stop"):
    answers = tuple(ComparedAnswer(mode, mode, f"{text} of {mode}", (1, 2), finished) for mode in modes)
    return Comparison(({"role": "user", "content": "a prompt"},), answers)


def test_programs_can_call_compare(page, online):
    client = client_of(page())
    job = client.submit("the sea", ["none", {"attention": 1, "ffn": 0.5}], None, "", 0.0, 6, 0, "", api_name="/compare")
    last = job.result(60)
    assert [answer["mode"] for answer in last["answers"]] == ["none", "attention=1, ffn=0.5"]
    assert all(answer["finished"] for answer in last["answers"])
    model = TAIAForCausalLM.from_pretrained(online.taia)
    expected = compare(model, load_tokenizer(model), "the sea", ["none"], max_new_tokens=6, do_sample=False)
    assert last["answers"][0]["tokens"] == list(expected.answers[0].tokens)
    assert len(job.outputs()) > 1
    assert last["model"] == online.taia
    endpoints = client.view_api(return_format="dict")["named_endpoints"]
    assert list(endpoints) == ["/compare"]
    assert {"prompt", "modes", "ffn_weight", "seed"} <= {
        one["parameter_name"] for one in endpoints["/compare"]["parameters"]
    }


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prompt": " "}, "The prompt is empty"),
        ({"modes": ["atention"]}, "Did you mean 'attention'"),
        ({"modes": 5}, "The modes are 5"),
        ({"system": 5}, "system is 5"),
        ({"model": "other/model"}, "This page answers by"),
        ({"modes": []}, "0 columns were chosen"),
        ({"modes": ["none", "attention", "ffn", "all"], "ffn_weight": 0.5}, "5 columns were chosen"),
        ({"ffn_weight": 2}, "ffn_weight is 2"),
        ({"max_new_tokens": 10_000}, "max_new_tokens is 10000"),
        ({"temperature": -1}, "temperature is -1"),
        ({"seed": "x"}, "seed is"),
        ({"prompt": "a " * 300}, "The prompt has 600 characters; 500 are allowed"),
        ({"prompt": "a " * 200}, "The prompt has 400 tokens; the model takes"),
    ],
)
def test_an_error_of_the_endpoint_says_what_is_wrong(brief, values, message):
    client = client_of(brief)
    with pytest.raises(gradio_client.exceptions.AppError, match=message):
        client.predict(**{"prompt": "the", **values}, api_name="/compare")


def test_a_model_that_does_not_exist_says_so(tmp_path, online):
    running = launch_page(settings=PageSettings(votes=tmp_path / "v.jsonl"), block=False, quiet=True)
    try:
        client = client_of(running)
        with pytest.raises(gradio_client.exceptions.AppError, match="No model was named"):
            client.predict(prompt="the", api_name="/compare")
        with pytest.raises(gradio_client.exceptions.AppError, match="org/nothing"):
            client.predict(prompt="the", model="org/nothing", api_name="/compare")
        with pytest.raises(gradio_client.exceptions.AppError, match="taia create"):
            client.predict(prompt="the", model=online.base, api_name="/compare")
        found = client.predict(prompt="the", model=online.taia, max_new_tokens=2, api_name="/compare")
        assert found["model"] == online.taia
    finally:
        running.close()


@pytest.mark.slow
def test_twenty_callers_at_once_each_get_their_own_answer(page, online):
    running = page(queue_size=32)
    model = TAIAForCausalLM.from_pretrained(online.taia)
    tokenizer = load_tokenizer(model)
    modes = ["none", "attention", "ffn", "all"]
    wanted = [(f"the {'sea ' * (number % 4)}{chr(97 + number)}", modes[number % 4]) for number in range(20)]

    (path,) = client_of(running).view_api(return_format="dict")["named_endpoints"]
    url = f"{running.local_url}gradio_api/call{path}"

    def call(one):  # as a program without gradio's client does: each call is a session of its own
        data = [one[0], [one[1]], None, "", 0.0, 8, 0, ""]
        event = httpx.post(url, json={"data": data}, timeout=60).json()["event_id"]
        lines = httpx.get(f"{url}/{event}", timeout=60).text.splitlines()
        assert "event: complete" in lines, lines[-3:]
        return json.loads(lines[lines.index("event: complete") + 1].removeprefix("data: "))[0]

    call(wanted[0])
    gc.collect()
    before = _tensor_bytes()
    with ThreadPoolExecutor(20) as pool:
        found = list(pool.map(call, wanted))
    for (prompt, mode), answer in zip(wanted, found, strict=True):
        expected = compare(model, tokenizer, prompt, [mode], max_new_tokens=8, do_sample=False, measures=False)
        assert answer["messages"][-1]["content"] == prompt
        assert answer["answers"][0]["tokens"] == list(expected.answers[0].tokens)
    wait_until(lambda: not decoding())
    gc.collect()
    assert _tensor_bytes() <= before * 1.01


def _tensor_bytes():
    return sum(value.nbytes for value in gc.get_objects() if type(value) in (torch.Tensor, torch.nn.Parameter))


@pytest.fixture
def unhurried(monkeypatch):
    """Answers that take long, and a count of those that are being made."""
    import taia_hub.page.answering as answering

    original = answering.stream_compare
    open_ = []

    def slow(*values, **keywords):
        open_.append(1)
        try:
            for state in original(*values, **keywords):
                time.sleep(0.1)
                yield state
        finally:
            open_.pop()

    monkeypatch.setattr(answering, "stream_compare", slow)
    return open_


def test_a_cancelled_caller_frees_its_place(page, unhurried):
    client = client_of(page())
    first = client.submit(prompt="the", max_new_tokens=100, api_name="/compare")
    wait_until(lambda: len(first.outputs()) > 2)
    assert unhurried
    first.cancel()
    wait_until(lambda: not unhurried and not decoding())
    found = client.predict(prompt="the", max_new_tokens=2, api_name="/compare")
    assert len(found["answers"]) == 3


def test_when_the_queue_is_full_callers_are_told(page, monkeypatch):
    import taia_hub.page.answering as answering

    original, refused = answering.stream_compare, threading.Event()

    def held(*values, **keywords):
        assert refused.wait(60)
        yield from original(*values, **keywords)

    monkeypatch.setattr(answering, "stream_compare", held)
    client = client_of(page(queue_size=1))
    jobs = [client.submit(prompt="the", max_new_tokens=2, api_name="/compare") for _ in range(4)]
    wait_until(lambda: any(job.done() for job in jobs))  # nobody has an answer yet
    refused.set()
    messages = []
    for job in jobs:
        try:
            job.result(60)
        except Exception as error:  # noqa: BLE001 - the client raises what the server said
            messages.append(str(error))
    assert messages
    assert all("queue" in message.lower() and "full" in message.lower() for message in messages)


def test_an_answer_is_cut_when_its_time_is_up(page, unhurried):
    client = client_of(page(max_seconds=0.5))
    found = client.predict(prompt="the", max_new_tokens=100, api_name="/compare")
    assert len(found["answers"][0]["tokens"]) < 20
    assert "Cut after 0.5 seconds" in found["notes"][-1]
    wait_until(lambda: not decoding())


def test_votes_have_a_place_that_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.chdir(tmp_path)
    default = PageSettings()
    assert default.votes == Path(constants.HF_HOME) / "taia-votes" / "votes.jsonl"
    assert default.votes_place == str(default.votes)
    assert PageSettings(votes=Path("own/v.jsonl")).votes_place == "~/own/v.jsonl"
    assert PageSettings(votes_dataset="org/votes").votes_place == "the data set org/votes on the Hub"


def test_a_port_that_is_taken_is_told_before_a_model_is_loaded(monkeypatch):
    with socket.socket() as used:
        used.bind(("127.0.0.1", 0))
        used.listen()
        port = used.getsockname()[1]
        with pytest.raises(ConfigError, match=f"Port {port} on 127.0.0.1 is in use"):
            launch_page("no/model", port=port)
        monkeypatch.setenv("GRADIO_SERVER_PORT", str(port))
        with pytest.raises(ConfigError, match=f"Port {port} on 127.0.0.1 is in use"):
            launch_page("no/model")
    for wrong in ("eighty", "70000", "-1"):
        monkeypatch.setenv("GRADIO_SERVER_PORT", wrong)
        with pytest.raises(ConfigError, match=f"'{wrong}' is no port"):
            launch_page("no/model")
    monkeypatch.setenv("GRADIO_SERVER_PORT", str(port))
    monkeypatch.setenv("GRADIO_SERVER_NAME", "192.0.2.1")
    with pytest.raises(ConfigError, match=r"cannot listen on '192\.0\.2\.1'") as caught:
        launch_page("no/model")
    assert "GRADIO_SERVER_NAME" in caught.value.hint


def test_a_large_model_asks_for_a_whole_card(monkeypatch):
    import taia_hub.page.answering as answering

    asked = []
    monkeypatch.setattr(answering, "on_gpu", lambda duration, size: asked.append(size) or (lambda function: function))
    for size in (0, 30 * 2**30, 60 * 2**30):
        monkeypatch.setattr(Models, "bytes", size)
        answering.make_answer(Models(), SETTINGS)
    assert asked == [None, None, "xlarge"]


def test_settings_come_from_the_environment():
    found = PageSettings.from_environment(
        {"TAIA_MODEL_ID": "a/b", "TAIA_MAX_SECONDS": "7.5", "TAIA_VOTES": "x/v.jsonl"}
    )
    assert (found.model_id, found.max_seconds, found.votes.name) == ("a/b", 7.5, "v.jsonl")
    with pytest.raises(ConfigError, match="TAIA_QUEUE_SIZE='many'"):
        PageSettings.from_environment({"TAIA_QUEUE_SIZE": "many"})


def test_a_question_has_its_columns():
    found = read_question(SETTINGS, prompt="a", modes=["none", "all"], ffn_weight=0.25)
    assert found.modes == ("none", "all", {"attention": 1.0, "ffn": 0.25, "other": 0.25})
    assert column_name("attention=1, ffn=0.25, other=0.25") == "FFN weight 0.25"
    for setting in ({"ffn@0-7": 1}, {"*.a=b": 1}, {"*, attention=1, ffn=0.5, other": 0.5}):
        label = parse_setting(setting).label
        assert column_name(label) == label
    with pytest.raises(SettingError, match="5 columns"):
        read_question(SETTINGS, prompt="a", modes=["none", "attention", "ffn", "all"], ffn_weight=0.5)


def test_the_gpu_is_asked_for_by_length_and_columns():
    short, long = Question("a", ("none",), max_new_tokens=10), Question("a", ("none", "all"), max_new_tokens=400)
    assert expected_seconds(short) < expected_seconds(long)


def test_a_folder_named_spaces_is_not_the_zero_gpu_package(tmp_path, monkeypatch):
    (tmp_path / "spaces").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])  # the package is found nowhere else
    monkeypatch.delitem(sys.modules, "spaces", raising=False)
    assert importlib.util.find_spec("spaces")
    assert zero_gpu() is None


def test_the_dtype_of_a_cpu_is_the_faster_one(monkeypatch):
    monkeypatch.setattr("taia_hub.page.devices._decoding_time", lambda dtype: 1.0 if dtype == torch.bfloat16 else 2.0)
    assert choose_dtype("cpu") == torch.bfloat16
    monkeypatch.setattr("taia_hub.page.devices._decoding_time", lambda dtype: 2.0 if dtype == torch.bfloat16 else 1.0)
    assert choose_dtype("cpu") == torch.float32
    assert choose_dtype("cuda") == torch.bfloat16


def test_a_model_is_loaded_once_for_all(online, monkeypatch):
    loads = []
    load = TAIAForCausalLM.from_pretrained
    monkeypatch.setattr(TAIAForCausalLM, "from_pretrained", lambda *a, **k: loads.append(a) or load(*a, **k))
    said = []
    models = Models(dtype="float32", on_load=lambda model: said.append(placement(model)))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: models.get(online.taia), range(4)))
    assert len(loads) == 1
    assert said == ["on cpu, float32"]
    assert len({id(one.model) for one in found}) == 1
    assert not found[0].model.training


NASTY = "<script>alert(1)</script><img src=x onerror=alert(2)> **bold** [a](javascript:x)"


def test_the_board_shows_text_and_nothing_else():
    answers = (ComparedAnswer("none", "none", NASTY, (1,), "stop"), ComparedAnswer("all", "all", "plain", (2,), "stop"))
    turn = Turn(Comparison(({"role": "user", "content": NASTY},), answers), (0, 1))
    for page in (board_html([turn]), board_html([turn], "none"), board_html([turn], "all")):
        assert "<script" not in page
        assert "<img" not in page
        assert "&lt;script&gt;" in page
    assert "<ins>" in board_html([turn], "all")


def test_blind_columns_do_not_tell_what_they_are():
    hidden = Turn(side_by_side("none", "attention", text="x"), (1, 0), blind=True)
    hidden = Turn(
        Comparison(
            hidden.comparison.messages,
            tuple(
                ComparedAnswer(
                    a.mode, a.setting, "words", a.tokens, a.finished, None, (), {"none": -1.0, "attention": -2.0}
                )
                for a in hidden.comparison.answers
            ),
        ),
        (1, 0),
        blind=True,
    )
    page = board_html([hidden], "none")
    assert hidden.names == ("Answer A", "Answer B")
    for word in ("none", "attention", "Base", "TAIA:", "Log-likelihood"):
        assert word not in page.replace('class="taia', "")
    shown = vote((hidden,), 0)[-1]
    assert shown.names == ("TAIA: attention updates", "Base model")
    assert "taia-chosen" in board_html([shown])


def test_votes_are_kept_line_by_line(tmp_path):
    from taia_hub.page.votes import Votes

    turns = vote((Turn(side_by_side("none", "all"), (1, 0), blind=True),), 0)
    votes = Votes(tmp_path / "deep" / "votes.jsonl")
    votes.add(turns)
    votes.add((*turns, *vote((Turn(side_by_side("none", "all"), (0, 1)),), -1)))
    rows = [json.loads(line) for line in (tmp_path / "deep" / "votes.jsonl").read_text().splitlines()]
    assert [row["choice"] for row in rows] == ["all", None]
    assert [answer["mode"] for answer in rows[0]["answers"]] == ["all", "none"]
    assert rows[0]["blind"]
    assert rows[0]["answers"][0]["history"] == []
    before = {answer["mode"]: answer["history"][-1]["content"] for answer in rows[1]["answers"]}
    assert before == {"none": "an answer of none", "all": "an answer of all"}


def test_a_vote_that_cannot_be_written_tells_no_path(tmp_path):
    from taia_hub.page.votes import Votes

    with pytest.raises(RepositoryError) as caught:
        Votes(tmp_path).add(vote((Turn(side_by_side("none", "all"), (0, 1)),), 0))
    assert str(tmp_path) not in str(caught.value)


def made(*states):
    """An answer function that gives these states, or raises one of them."""

    def answer(name, revision, question):
        for state in states:
            if isinstance(state, Exception):
                raise state
            yield state

    return answer


def test_an_error_in_the_middle_leaves_no_answer_running():
    answer = made(side_by_side("none", "all", finished=None), OutOfMemoryError("too much", "use less"))
    seen = []
    states = ask(answer, "m", None, (), Question("a", ("none", "all")))
    with pytest.raises(OutOfMemoryError):
        seen.extend(turns[-1].running for turns in states)
    assert seen == [True, False]


def test_blind_questions_are_shuffled_and_older_ones_revealed():
    orders = set()
    for _ in range(40):
        asked = []

        def answer(name, revision, question, asked=asked):
            asked.append(question.modes)
            yield side_by_side(*question.modes)

        question = Question("a", ("none", "attention", "all"), histories=((1,), (2,), (3,)))
        (*_, turns) = ask(answer, "m", None, (), question, blind=True)
        assert turns[-1].hidden
        assert [column.mode for column in turns[-1].columns] == list(asked[0])
        orders.add(asked[0])
    assert len(orders) > 3
    (*_, later) = ask(made(side_by_side("none", "all")), "m", None, turns, Question("b", ("none", "all")), blind=True)
    assert not later[0].hidden
    assert later[1].hidden


def test_an_error_of_a_gpu_worker_arrives_whole(monkeypatch):
    """ZeroGPU runs the function in a fork and passes on values by pickle, and of exceptions the name alone."""
    import taia_hub.page.answering as answering

    def fork(function):
        def run(*values):
            for state in function(*pickle.loads(pickle.dumps(values))):
                yield pickle.loads(pickle.dumps(state))

        return run

    monkeypatch.setattr(answering, "on_gpu", lambda duration, size: fork)
    answer = answering.make_answer(Models(), SETTINGS)
    with pytest.raises(RepositoryError, match="nothing") as caught:
        list(answer("org/nothing", None, Question("a", ("none",))))
    assert caught.value.hint


def test_finished_answers_are_shown_although_the_time_is_up(monkeypatch):
    from taia_hub.page.answering import _paced

    done = side_by_side("none")
    assert list(_paced(iter([done, done]), time.monotonic() - 1, 1.0)) == [done]
    cut = list(_paced(iter([side_by_side("none", finished=None)] * 3), time.monotonic() - 1, 1.0))
    assert "Cut after 1 seconds" in cut[0].notes[-1]


def test_a_link_sets_only_what_the_page_allows():
    gr = pytest.importorskip("gradio")
    from taia_hub.page.blocks import _Layout

    with gr.Blocks():
        layout = _Layout(gr, SETTINGS, ["none"], ["a"])
    hostile = {
        "prompt": "hi",
        "temperature": "inf",
        "max_new_tokens": "99999",
        "seed": "1.5",
        "modes": "none,none,x,all",
    }
    prompt, modes, _, *numbers = layout.linked(hostile)
    assert (prompt, modes) == ("hi", ["none", "all"])
    assert all(isinstance(number, dict) for number in numbers)  # gr.skip()
    assert layout.linked({"temperature": "0.5", "max_new_tokens": "64", "seed": "3"})[3:] == [0.5, 64, 3]


def test_visitors_cannot_name_folders_of_the_server(tmp_path):
    from taia_hub.page.callbacks import Callbacks
    from taia_hub.page.votes import Votes

    open_page = Callbacks(made(), PageSettings(), Votes(tmp_path / "v"), "secret")
    for name in (str(tmp_path), "/etc", "gpt2", "a b"):
        with pytest.raises(ConfigError, match="is no Hub id"):
            open_page.repository(name)
    assert open_page.repository("org/model@main") == ("org/model", "main")
    own = Callbacks(made(), SETTINGS, Votes(tmp_path / "v"), None)
    with pytest.raises(ConfigError, match="answers by 'org/model' only"):
        own.repository("other/model")


def test_a_vote_needs_answers_and_counts_once():
    running = (Turn(side_by_side("none", "all"), (0, 1), running=True),)
    with pytest.raises(ConfigError, match="no answers to vote for"):
        vote(running, 0)
    with pytest.raises(ConfigError, match="No answer was chosen"):
        vote(stop(running), None)
    with pytest.raises(ConfigError, match="have voted"):
        vote(vote(stop(running), 1), 1)


def test_each_mode_keeps_its_own_conversation():
    turns = (Turn(side_by_side("none", "all"), (0, 1)),)
    found = histories_of(turns, ["all", "ffn"])
    assert found["all"][-1] == {"role": "assistant", "content": "an answer of all"}
    assert found["ffn"][-1] == {"role": "assistant", "content": "an answer of none"}


def test_the_status_says_how_things_stand():
    turn = Turn(side_by_side("none", "all", finished=None), (0, 1), running=True)
    assert status_text([turn]).startswith("Answering: 4 tokens")
    assert status_text(stop((turn,))).startswith("Stopped after 4 tokens")
    assert status_text([Turn(side_by_side("none"), (0,))]) == "Done: 2 tokens in 1 column."
    assert status_text([]) == "Ready."


def test_zero_gpu_is_found_where_it_is_installed():
    found = zero_gpu()
    assert found is None or hasattr(found, "GPU")


def test_examples_are_those_of_the_card(online, tmp_path):
    from taia_hub.page.examples import EXAMPLES, card_examples

    assert card_examples(online.taia, token=online.hub.token) == EXAMPLES
    (tmp_path / "README.md").write_text("---\nwidget:\n- text: the sea ?\n- {}\n- text: and\n---\n# A card\n")
    assert card_examples(str(tmp_path)) == ("the sea ?", "and")
    (tmp_path / "README.md").write_text("---\nwidget: [\n---\n")
    assert card_examples(str(tmp_path)) == EXAMPLES
    assert card_examples("org/nothing", token=online.hub.token) == EXAMPLES


def test_a_page_of_a_model_that_cannot_be_loaded_does_not_open(online):
    with pytest.raises(ConfigError, match="taia create"):
        launch_page(online.base, token=online.hub.token, block=False)
