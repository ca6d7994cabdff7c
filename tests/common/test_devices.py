"""Where models go, on machines that this one is not; and that nothing is loaded where that place is not there."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from taia_hub import TAIAForCausalLM, cli
from taia_hub.common.devices import choose_device, place, placement
from taia_hub.errors import ConfigError, OutOfMemoryError


@pytest.fixture
def machine(monkeypatch):
    """Makes this machine look as if it had some GPUs."""
    for name in ("ACCELERATE_USE_CPU", "WORLD_SIZE", "LOCAL_RANK", "RANK"):
        monkeypatch.delenv(name, raising=False)

    def make(gpus=0, mps=False, built="12.8"):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(torch.version, "cuda", built)

    return make


@pytest.mark.parametrize(
    ("has", "device"), [({}, "cpu"), ({"gpus": 1}, "cuda"), ({"mps": True}, "mps"), ({"gpus": 2, "mps": True}, "cuda")]
)
def test_a_gpu_is_taken_where_there_is_one(machine, has, device):
    machine(**has)
    assert choose_device() == device
    assert place() == (None if device == "cpu" else device)


def test_each_of_several_processes_has_a_gpu_of_its_own(machine, monkeypatch):
    machine(gpus=2)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert choose_device() == "cuda:1"
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert choose_device() == "cpu"
    assert choose_device("cuda:0") == "cuda:0"


@pytest.mark.parametrize("asked", ["cpu", "cuda", "cuda:0", "cuda:1", "mps", "mps:0"])
def test_what_is_there_may_be_asked_for(machine, asked):
    machine(gpus=2, mps=True)
    assert choose_device(asked) == asked
    assert place(asked) == (None if asked == "cpu" else asked)
    assert place(device_map=asked) == asked


@pytest.mark.parametrize("spread", ["auto", "balanced", "sequential"])
def test_a_device_map_of_several_devices_stays_as_it_is(machine, spread):
    machine()
    assert place(device_map=spread) == spread


@pytest.mark.parametrize(
    ("has", "asked", "message", "hint"),
    [
        ({"built": None}, "cuda", "built without CUDA", "--device cpu"),
        ({"built": None}, "cuda:1", "built without CUDA", "pytorch.org"),
        ({}, "cuda", "finds no GPU that it can use", "nvidia-smi"),
        ({"gpus": 2}, "cuda:2", "'cuda:2' is not there: there is cuda:0, cuda:1.", "Choose one"),
        ({"gpus": 2}, "mps", "GPU of a Mac", "--device cpu"),
        ({"mps": True}, "mps:1", "GPU of a Mac", "--device cpu"),
        ({"gpus": 2}, "cuad", "Did you mean 'cuda'?", "Choose cpu, cuda"),
        ({"gpus": 2}, "gpu", "'gpu' is not known", "Choose cpu, cuda"),
        ({"gpus": 2}, "cuda:", "'cuda:' is not known", "Choose cpu, cuda"),
        ({"gpus": 2}, "cuda:-1", "'cuda:-1' is not known", "Choose cpu, cuda"),
        ({"gpus": 2}, "cuda:x", "'cuda:x' is not known", "Choose cpu, cuda"),
        ({"gpus": 2}, "", "'' is not known", "Choose cpu, cuda"),
    ],
)
def test_what_is_not_there_is_said(machine, has, asked, message, hint):
    machine(**has)
    for ask in ({"device": asked}, {"device_map": asked}):
        with pytest.raises(ConfigError) as refused:
            place(**ask)
        assert message in refused.value.message
        assert hint in refused.value.hint


def test_a_device_and_a_device_map_are_one_too_many(machine):
    machine(gpus=1)
    with pytest.raises(ConfigError, match="do not go together"):
        place("cuda", "auto")


def test_a_model_says_where_it_runs():
    model = torch.nn.Linear(2, 2, dtype=torch.bfloat16)
    model.dtype = model.weight.dtype
    assert placement(model) == "on cpu, bfloat16"


COMMANDS = {
    "generate": ["--prompt", "the"],
    "compare": ["--prompt", "the"],
    "compare --file": ["--file", "prompts.jsonl"],
    "compare --ui": ["--ui"],
    "eval": ["--task", "items.jsonl"],
    "analyze": ["--texts", "texts.txt"],
    "chat": [],
}


@pytest.fixture
def words(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "the sea"}\n')
    (tmp_path / "texts.txt").write_text("the sea\n")
    item = '{"id": "1", "question": "the?", "answer": "A", "answer_type": "choice", "choices": ["a", "b"]}\n'
    (tmp_path / "items.jsonl").write_text(item)
    return lambda command, repo, *more: [command.split()[0], repo, *COMMANDS[command], *more]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("more", [[], ["--device", "cuda:1"]])
def test_every_command_that_loads_a_model_takes_the_gpu(machine, monkeypatch, words, online, command, more, capsys):
    machine(gpus=2)
    asked = []

    class Loaded(Exception):
        pass

    def load(*_, **keywords):
        asked.append(keywords.get("device_map"))
        raise Loaded

    monkeypatch.setattr("taia_hub.modeling_taia.TAIAForCausalLM.from_pretrained", load)
    with pytest.raises(SystemExit):
        cli.main(words(command, online.taia, *more))
    assert asked == [more[1] if more else "cuda"], capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_a_device_that_is_not_there_is_told_before_anything_is_fetched(machine, words, online, command, capsys):
    machine(built=None)
    with pytest.raises(SystemExit):
        cli.main(words(command, online.taia, "--device", "cuda"))
    assert "built without CUDA" in capsys.readouterr().err
    assert online.hub.requests == []


@pytest.mark.parametrize("command", [*COMMANDS, "plain"])
def test_a_model_that_does_not_fit_says_what_would(words, online, taia, monkeypatch, command):
    raised = []

    def full(*_, **__):
        raised.append(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))
        raise raised[-1]

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", full)
    plain = ["compare", online.base, online.adapter, "the"]
    status, _, err = taia(*(plain if command == "plain" else words(command, online.taia, "--device", "cpu")))
    assert (status, len(raised)) == (1, 1)
    assert "The model does not fit into the memory" in err
    for option in ("--device-map auto", "--device cpu", "--dtype"):
        assert option in " ".join(err.partition("Hint: ")[2].split())


def test_other_errors_of_loading_stay_what_they_are_and_other_ways_to_say_that_it_is_full_are_known(
    online, monkeypatch
):
    def load(message):
        def fail(*_, **__):
            raise RuntimeError(message)

        monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fail)
        return TAIAForCausalLM.from_pretrained(online.adapter)

    with pytest.raises(ConfigError, match="size mismatch"):
        load("size mismatch")
    for message in ("MPS backend out of memory", "DefaultCPUAllocator: can't allocate memory: you tried"):
        with pytest.raises(OutOfMemoryError, match="does not fit"):
            load(message)
