"""`taia serve`: commands as values, the files of modes, the start of an engine, and bad input."""

import copy
import dataclasses
import inspect
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers.normalizers import Lowercase
from transformers import AutoTokenizer
from typer.testing import CliRunner

from taia_hub import TAIAForCausalLM
from taia_hub.cli.serving import serve_model
from taia_hub.engines.llamacpp_front import GENERATING, make_params
from taia_hub.engines.parts import Module, Served, split
from taia_hub.errors import ConfigError, MissingDependencyError, RepositoryError, SettingError
from taia_hub.repository.creating import create_repository
from taia_hub.serving import (
    ENGINES,
    Command,
    Order,
    ServedMode,
    check_installed,
    choose_engine,
    plan_serving,
    run,
)
from taia_hub.serving.memory import (
    _size,
    kv_bytes,
    lora_bytes,
    lora_shapes,
    merged_memory,
    slots_memory,
    weights_bytes,
)
from taia_hub.switch.settings import parse_setting

SHA = "0123456789abcdef0123456789abcdef01234567"
MODES = (
    ServedMode("attention", Path("/m/attention"), 24),
    ServedMode("all", Path("/m/all"), 8),
    ServedMode("none"),
)


def order(**values):
    return Order(**{"name": "model", "base": "org/base", "revision": SHA, "modes": MODES, **values})


def json_of(folder):
    return json.loads((folder / "config.json").read_text())


def shown(engine, **values):
    return "\n".join(command.shell() for command in ENGINES[engine].commands(order(**values)))


def flat(engine, **values):
    return shown(engine, **values).replace(" \\\n    ", " ")


# --- Commands ------------------------------------------------------------------------------------------------------
def test_vllm_on_one_machine():
    assert shown("vllm") == (
        "vllm serve org/base \\\n"
        f"    --revision {SHA} \\\n"
        "    --served-model-name model:none \\\n"
        "    --enable-lora \\\n"
        "    --max-lora-rank 32 \\\n"
        "    --max-loras 3 \\\n"  # one that stays free, by which vLLM on CPUs answers for the base
        "    --lora-modules model:attention=/m/attention model:all=/m/all \\\n"
        "    --host 127.0.0.1 \\\n"
        "    --port 8000"
    )
    assert ENGINES["vllm"].model_names(order()) == ("model:attention", "model:all", "model:none")


def test_vllm_on_several_gpus_and_machines():
    assert "--tensor-parallel-size 4 --data-parallel-size 2 --host" in flat("vllm", tensor_parallel=4, data_parallel=2)
    several = shown("vllm", nodes=2, head="10.0.0.1", tensor_parallel=8).splitlines()
    assert several[0] == "ray start --head --node-ip-address=10.0.0.1 --port=6379"
    assert several[1] == "ray start --address=10.0.0.1:6379"
    cut = flat("vllm", nodes=2, head="10.0.0.1", tensor_parallel=8)
    assert "--tensor-parallel-size 8 --pipeline-parallel-size 2 --distributed-executor-backend ray --host" in cut
    copies = flat("vllm", nodes=2, head="10.0.0.1", data_parallel=4)
    assert "--data-parallel-size 4 --data-parallel-size-local 2 --data-parallel-backend ray --host" in copies
    assert "pipeline" not in copies
    where = [command.where for command in ENGINES["vllm"].commands(order(nodes=3, head="h"))]
    assert where == ["the first machine", "each of the other 2", "the first machine"]
    with pytest.raises(ConfigError, match="3 copies do not spread evenly over 2 machines"):
        shown("vllm", nodes=2, head="h", data_parallel=3)
    with pytest.raises(ConfigError, match="needs the address") as caught:
        shown("vllm", nodes=2)
    assert "--head" in caught.value.hint


def test_vllm_without_adapters_and_with_the_users_own_flags():
    alone = flat("vllm", modes=(ServedMode("none"),), base="/models/base", revision=None, trust_remote_code=True)
    assert alone == (
        "vllm serve /models/base --served-model-name model:none --trust-remote-code --host 127.0.0.1 --port 8000"
    )
    own = flat("vllm", extra=("--max-lora-rank", "64", "--max-loras=1", "--max-cpu-loras", "8"))
    assert own.endswith("--port 8000 --max-lora-rank 64 --max-loras=1 --max-cpu-loras 8")
    assert own.count("--max-lora-rank") == own.count("--max-loras") == 1
    with pytest.raises(ConfigError, match="--max-lora-rank 16 is below rank 24") as caught:
        flat("vllm", extra=("--max-lora-rank=16",))
    assert "--max-lora-rank 32" in caught.value.hint
    with pytest.raises(ConfigError, match="'auto' is no number") as caught:
        flat("vllm", extra=("--max-loras", "auto"))
    assert "one batch may mix" in caught.value.hint
    with pytest.raises(ConfigError, match="'x' is no number") as caught:
        flat("vllm", extra=("--max-lora-rank", "x"))
    assert "Give one of 1, 8" in caught.value.hint


def test_slots_without_a_free_one_are_noted():
    notes = ENGINES["vllm"].notes
    assert notes(order()) == notes(order(extra=("--max-loras", "3"))) == ()
    (note,) = notes(order(extra=("--max_loras=2",)))
    assert note.startswith("--max-loras 2 leaves no slot free beside 2 LoRAs")
    assert note.endswith("answers model:none with another mode's LoRA. Give --max-loras 3, or leave it out.")
    assert notes(order(modes=(ServedMode("none"),), extra=("--max-loras=1",))) == ()


def test_a_base_that_vllm_rounds_is_noted():
    notes = ENGINES["vllm"].notes
    for words in ((), ("--dtype", "auto"), ("--dtype=half",)):
        (note,) = notes(order(dtype="float32", extra=words))
        assert "vLLM computes in 16 bits" in note
    for words in (("--dtype", "float32"), ("--dtype=float",)):
        assert notes(order(dtype="float32", extra=words)) == ()
    assert notes(order(dtype="bfloat16")) == notes(order()) == ()


def test_signs_that_vllm_reads_as_its_own_go_into_json():
    odd = ServedMode("attention", Path("/m/r=8,v=2"), 8)
    words = ENGINES["vllm"].commands(order(modes=(odd,)))[-1].words
    assert json.loads(words[words.index("--lora-modules") + 1]) == {"name": "model:attention", "path": "/m/r=8,v=2"}


def test_sglang_on_one_machine():
    assert flat("sglang", tensor_parallel=2, data_parallel=2) == (
        f"python -m sglang.launch_server --model-path org/base --revision {SHA} --served-model-name model "
        "--enable-lora --lora-paths attention=/m/attention all=/m/all --max-loras-per-batch 3 --tp-size 2 --dp-size 2 "
        "--host 127.0.0.1 --port 8000"
    )
    # SGLang splits `model:adapter` itself and refuses a colon in the base's name
    assert ENGINES["sglang"].model_names(order()) == ("model:attention", "model:all", "model")
    assert "lora" not in flat("sglang", modes=(ServedMode("none"),))
    assert "--max-loras-per-batch 8" in flat("sglang", extra=("--max-loras-per-batch", "8"))
    assert flat("sglang", extra=("--max-loras-per-batch", "8")).count("per-batch") == 1
    assert "--max-lora-rank 24" in flat("sglang", extra=("--max-lora-rank", "24"))
    with pytest.raises(ConfigError, match="--max-lora-rank 4 is below rank 24") as caught:
        flat("sglang", extra=("--max-lora-rank", "4"))
    assert "--max-lora-rank 24" in caught.value.hint


def test_sglang_on_several_machines():
    commands = ENGINES["sglang"].commands(order(nodes=2, head="10.0.0.1", tensor_parallel=16))
    assert [command.where for command in commands] == ["machine 2", "the first machine"]
    first = " ".join(commands[-1].words)
    assert "--tp-size 16 --nnodes 2 --node-rank 0 --dist-init-addr 10.0.0.1:50000" in first
    assert " ".join(commands[0].words) == first.replace("--node-rank 0", "--node-rank 1")
    with pytest.raises(ConfigError, match="do not go together"):
        shown("sglang", nodes=2, head="h", data_parallel=2)
    with pytest.raises(ConfigError, match="--tensor-parallel 3 does not spread"):
        shown("sglang", nodes=2, head="h", tensor_parallel=3)


def test_llama_cpp_has_a_file_that_says_all_it_serves(tmp_path):
    key = tmp_path / "key.pem"
    key.touch()
    half = parse_setting({"attention": 1, "ffn": 0.5})
    (ffn,) = split([Module("l.mlp", "ffn", 0)], [])
    modes = (ServedMode("half", setting=half), ServedMode("", setting=parse_setting("attention")), ServedMode("none"))
    own = ("--n_ctx", "4096", "--chat-template=x y", "--api-keys", "123", f"--ssl-certfile={key}")
    parts = (dataclasses.replace(ffn, path=Path("/m/ffn.gguf"), rank=8),)
    asked = order(modes=modes, parts=parts, gguf=Path("/b.gguf"), folder=Path("/out"), extra=own)
    (command,) = ENGINES["llama.cpp"].commands(asked)
    ((path, text),) = command.files.items()
    assert command.shell() == f"python -m taia_hub.engines.llamacpp_front \\\n    {path}"
    assert path.parent == Path("/out")
    (other,) = ENGINES["llama.cpp"].commands(dataclasses.replace(asked, port=8001))
    assert path not in other.files  # two servers of one folder do not share a file
    described = json.loads(text)
    assert Served.of(described.pop("served")) == Served(
        "model",
        {"model:half": half, "model": parse_setting("attention"), "model:none": parse_setting("none")},
        parts,
    )
    assert described == {
        "host": "127.0.0.1",
        "port": 8000,
        "base": "/b.gguf",
        "settings": {"n_ctx": "4096", "chat_template": "x y", "api_keys": "123"},
        "front": {"ssl_certfile": str(key)},
    }
    with pytest.raises(ConfigError, match="'--n-ctx' is no flag with a value"):
        ENGINES["llama.cpp"].commands(order(extra=("--n-ctx",), gguf=Path("/b.gguf")))
    for own, message in (
        (("--ssl-keyfile", str(key)), "--ssl-keyfile came without --ssl-certfile"),
        (("--ssl-certfile", str(key), "--ssl-keyfile", "/nowhere"), "There is no file '/nowhere' for --ssl-keyfile"),
    ):
        with pytest.raises(ConfigError, match=message):
            ENGINES["llama.cpp"].check(order(extra=own, gguf=Path("/b.gguf")))


def test_llama_cpps_flags_are_its_parameters():
    pytest.importorskip("xllamacpp")
    texts = {
        "n_ctx": "4096",
        "cpuparams.n_threads": "2",
        "sampling.temp": "0.5",
        "flash_attn_type": "disabled",
        "cache_type_k": "q8_0",
        "cache_type_v": "0",
        "api_keys": "123",
        "tensor_split": "[1, 3]",
        "warmup": "false",
        "chat_template": "7",
    }
    params = make_params(texts)
    assert (params.n_ctx, params.cpuparams.n_threads, params.sampling.temp) == (4096, 2, 0.5)
    assert (params.flash_attn_type.value, params.cache_type_k.value, params.cache_type_v.value) == (0, 8, 0)
    assert (params.api_keys, list(params.tensor_split)[:2], params.warmup) == (["123"], [1, 3], False)
    assert params.chat_template == "7"
    assert make_params({"cache_ram_mib": "9"}).cache_ram_mib == 0  # one mode's prompts are never another's
    for name, text, message in (
        ("n_ctxx", "1", "no parameter 'n_ctxx'. Did you mean 'n_ctx'"),
        ("n_threads", "1", "no parameter 'n_threads'. Did you mean 'cpuparams.n_threads'"),
        ("n_ctx", "many", "'many' is no value of llama.cpp's parameter 'n_ctx'"),
        ("n_ctx", "1.5", "'1.5' is no value"),
        ("cpuparams", "1", "no parameter 'cpuparams'"),
        ("cache_type_k", "f33", "'f33' is no value"),
    ):
        with pytest.raises(ConfigError, match=message):
            ENGINES["llama.cpp"].commands(order(gguf=Path("/b.gguf"), extra=(f"--{name}", text)))


def test_transformers_is_pinned_to_a_single_mode():
    one = order(modes=MODES[:1], folder=Path("/out dir/merged"))
    (command,) = ENGINES["transformers"].commands(one)
    cache = command.environment["HF_HUB_CACHE"]
    assert Path(cache).parent == Path("/out dir/merged")
    assert command.shell().replace(" \\\n    ", " ") == (
        f"cd '/out dir/merged' && HF_HUB_OFFLINE=1 HF_HUB_CACHE='{cache}' "
        "transformers serve model:attention --host 127.0.0.1 --port 8000"
    )
    (command,) = ENGINES["transformers"].commands(order())
    assert command.words[:3] == ("transformers", "serve", "--host")
    (command,) = ENGINES["transformers"].commands(order(trust_remote_code=True))
    assert "HF_HUB_CACHE" not in command.environment  # a model's own code is looked for there


def test_transformers_lists_the_modes_and_nothing_else(tmp_path):
    serving = pytest.importorskip("transformers.cli.serving.model_manager")
    for modes in (MODES, MODES[:1]):  # the second is a start of the same folder later on
        (command,) = ENGINES["transformers"].commands(order(modes=modes, folder=tmp_path))
        command.write_files()
        listed = serving.ModelManager.get_gen_models(command.environment["HF_HUB_CACHE"])
        assert {one["id"] for one in listed} == {f"model:{mode.label}" for mode in modes}


@pytest.mark.parametrize("engine", ["llama.cpp", "transformers"])
@pytest.mark.parametrize("spread", [{"tensor_parallel": 2}, {"data_parallel": 2}, {"nodes": 2, "head": "h"}])
def test_engines_of_one_machine_refuse_more(engine, spread):
    with pytest.raises(ConfigError, match="one copy on one machine") as caught:
        ENGINES[engine].commands(order(gguf=Path("/b.gguf"), **spread))
    assert "--engine vllm" in caught.value.hint


def test_a_rank_above_the_limit_names_the_flag():
    large = ServedMode("attention", Path("/m"), 513)
    with pytest.raises(ConfigError, match=r"rank 513; vllm takes at most 512 \(--max-lora-rank\)") as caught:
        ENGINES["vllm"].commands(order(modes=(large,)))
    assert "taia export" in caught.value.hint
    ENGINES["sglang"].commands(order(modes=(large,)))


@pytest.mark.parametrize("engine", ENGINES)
def test_flags_that_are_set_already_are_refused(engine):
    with pytest.raises(ConfigError, match="--port is set by `taia serve`"):
        ENGINES[engine].commands(order(gguf=Path("/b.gguf"), extra=("--port=1",)))


@pytest.mark.parametrize(
    ("engine", "word"),
    [
        ("vllm", "--served_model_name"),
        ("vllm", "--tp"),
        ("vllm", "-dp=2"),
        ("vllm", "--served-model"),
        ("vllm", "--trust_remote_code"),
        ("sglang", "--lora_paths=x"),
        ("sglang", "--dp"),
        ("llama.cpp", "--lora-adapters"),
        ("llama.cpp", "--model.path"),
        ("llama.cpp", "--cache_ram_mib"),
        ("llama.cpp", "--model-alias"),
        ("llama.cpp", "--model_alias"),
        ("transformers", "--trust_remote_code"),
    ],
)
def test_other_forms_of_such_flags_are_refused_too(engine, word):
    with pytest.raises(ConfigError, match=r"is set by `taia serve`"):
        ENGINES[engine].commands(order(gguf=Path("/b.gguf"), extra=(word, "2")))


def test_flags_of_several_machines_are_refused_where_there_are():
    with pytest.raises(ConfigError, match="-pp is set by"):
        flat("vllm", nodes=2, head="h", extra=("-pp", "4"))
    assert flat("vllm", extra=("--pipeline-parallel-size", "2")).endswith("--pipeline-parallel-size 2")
    with pytest.raises(ConfigError, match="--max-lora-rank 1 is below"):
        flat("vllm", extra=("--max_lora_rank", "1"))


def test_engines_say_what_they_were_written_for():
    for engine in ENGINES.values():
        assert engine.version
        assert engine.docs.startswith("https://")
        assert engine.install.startswith("pip install")
    assert {name for name, engine in ENGINES.items() if engine.run_here} == {"vllm", "llama.cpp", "transformers"}


def test_what_is_printed_is_what_a_shell_reads(tmp_path):
    odd = "it's $HOME"
    script = "import sys, os; print(repr((sys.argv[1:], os.getcwd(), os.environ['X'])))"
    command = Command(((sys.executable, "-c", script), (odd,)), folder=tmp_path, environment={"X": odd})
    done = subprocess.run(["sh", "-c", command.shell()], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == repr(([odd], str(tmp_path), odd))


# --- Plans: from a repository to commands --------------------------------------------------------------------------
@pytest.fixture(scope="module")
def repository(pico, tmp_path_factory):
    folder = tmp_path_factory.mktemp("serving") / "pico-taia"
    TAIAForCausalLM.from_adapter(pico.base("llama"), pico.adapter("llama")).save_pretrained(folder)
    return folder


def test_exports_of_modes_are_prepared_and_used_again(repository, pico, tmp_path):
    plan = plan_serving(repository, "vllm", ["attention", {"attention": 1, "ffn": 0.5}], out=tmp_path)
    assert plan.models == ("pico-taia:attention", "pico-taia:attention-1-ffn-0.5", "pico-taia:none")
    words = plan.commands[-1].words
    assert words[:3] == ("vllm", "serve", str(pico.base("llama").absolute()))
    assert "--revision" not in words
    assert words[words.index("--max-lora-rank") + 1] == "8"
    assert f"pico-taia:attention={tmp_path}/adapters/attention" in words
    weights = tmp_path / "adapters" / "attention" / "adapter_model.safetensors"
    assert all("self_attn" in name for name in load_file(weights))
    made = weights.stat().st_mtime_ns
    again = plan_serving(repository, "sglang", ["attention"], out=tmp_path)
    assert again.models == ("pico-taia:attention", "pico-taia")
    assert weights.stat().st_mtime_ns == made
    names = {path.name for path in (tmp_path / "adapters").iterdir()}
    assert names == {"attention", "attention-1-ffn-0.5"}


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:99])])
def test_damaged_files_are_prepared_again(repository, tmp_path, damage):
    plan = plan_serving(repository, "vllm", ["attention"], out=tmp_path)
    path = plan.order.modes[0].path / "adapter_model.safetensors"
    before = path.read_bytes()
    damage(path)

    plan_serving(repository, "vllm", ["attention"], out=tmp_path)

    assert path.read_bytes() == before


def test_another_update_replaces_what_was_prepared(repository, pico, tmp_path):
    plan_serving(repository, "vllm", out=tmp_path)
    weights = tmp_path / "adapters" / "attention" / "adapter_model.safetensors"
    before = load_file(weights)
    other = tmp_path / "pico-taia"
    adapter = pico.adapter("llama", label="another", seed=7)
    TAIAForCausalLM.from_adapter(pico.base("llama"), adapter).save_pretrained(other)
    plan_serving(other, "vllm", out=tmp_path)
    after = load_file(weights)
    assert not all(torch.equal(after[name], before[name]) for name in after)


@pytest.mark.parametrize("part", ["weights", "template"])
def test_what_a_merged_mode_is_made_of_replaces_it(pico, tmp_path, part):
    """Neither size nor time of the file tells it."""
    base = shutil.copytree(pico.base("llama"), tmp_path / "base")
    TAIAForCausalLM.from_adapter(base, pico.adapter("llama")).save_pretrained(tmp_path / "repository")
    template = tmp_path / "repository" / "chat_template.jinja"
    template.write_text("before")

    def stamp():
        plan_serving(tmp_path / "repository", "transformers", ["attention"], out=tmp_path / "out", name="m")
        return (tmp_path / "out" / "merged" / "m:attention" / "model.safetensors").stat().st_mtime_ns

    made = stamp()
    assert stamp() == made
    changed = base / "model.safetensors" if part == "weights" else template
    before = changed.stat()
    changed.write_bytes(changed.read_bytes()[:-6] + b"after!")
    os.utime(changed, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert stamp() != made


def test_other_peoples_files_are_left_alone(repository, tmp_path):
    mine = tmp_path / "adapters" / "attention" / "notes.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(RepositoryError, match="not prepared for serving") as caught:
        plan_serving(repository, "vllm", ["attention"], out=tmp_path)
    assert "--out" in caught.value.hint
    assert [path.name for path in mine.parent.iterdir()] == ["notes.txt"]


def test_nothing_is_left_of_a_mode_that_fails(repository, tmp_path, monkeypatch):
    from taia_hub.serving import preparing

    def fail(*arguments, **keywords):
        Path(arguments[1], "half").write_text("half")
        raise RepositoryError("no space", "free some")

    monkeypatch.setattr(preparing, "export_adapter", fail)
    with pytest.raises(RepositoryError, match="no space"):
        plan_serving(repository, "vllm", ["attention"], out=tmp_path)
    assert list((tmp_path / "adapters").iterdir()) == []


def test_a_hub_repository_is_fixed_by_commits(online, tmp_path):
    plan = plan_serving(online.taia, "vllm", ["attention", "none"], out=tmp_path)
    words = plan.commands[-1].words
    assert words[:5] == ("vllm", "serve", online.base, "--revision", online.base_sha)
    assert plan.models == ("model-taia:attention", "model-taia:none")
    sha = online.api.model_info(online.taia).sha
    assert plan.prepared == (
        f"taia export {online.taia} --mode attention --out {tmp_path}/adapters/attention --revision {sha}",
    )
    assert plan.text().splitlines()[:3] == [
        "# vllm: commands for version 0.32, run. https://docs.vllm.ai/en/stable/features/lora/",
        "# Models: model-taia:attention, model-taia:none",
        f"# Made before: {plan.prepared[0]}",
    ]


def test_a_name_cannot_end_a_comment(pico, tmp_path):
    source = tmp_path / "x\ntouch PWNED; #"
    shutil.copytree(pico.adapter("llama"), source)
    plan = plan_serving(source, "vllm", ["attention"], out=tmp_path / "out", name="m")
    script = plan.text().replace("vllm serve", "true")
    subprocess.run(["sh", "-c", script], cwd=tmp_path, check=True)
    assert not (tmp_path / "PWNED").exists()


def test_damaged_and_foreign_files_are_named(repository, tmp_path):
    plan_serving(repository, "vllm", ["attention"], out=tmp_path)
    marker = tmp_path / "adapters" / "attention" / "taia_serving.json"
    for text in ("{", "[]", "{}", '{"made_from": {}, "rank": "8"}'):
        marker.write_text(text)
        with pytest.raises(RepositoryError, match=r"taia_serving\.json'.* is damaged") as caught:
            plan_serving(repository, "vllm", ["attention"], out=tmp_path)
        assert "Move that folder elsewhere" in caught.value.hint
    (tmp_path / "merged" / "m:none").mkdir(parents=True)
    with pytest.raises(RepositoryError, match=r"merged/m:none' holds files that were not prepared"):
        plan_serving(repository, "transformers", ["none"], out=tmp_path, name="m")


def test_settings_of_which_only_signs_differ_are_served_beside_each_other(repository, tmp_path):
    plan = plan_serving(repository, "vllm", [{"*.q_proj": 1}, {"?*.[qk]_proj": 1}], out=tmp_path)
    later = plan_serving(repository, "vllm", [{"?*.q_proj": 1}], out=tmp_path)
    modes = (*plan.order.updates, *later.order.updates)
    assert len({mode.label for mode in modes}) == len({mode.path for mode in modes}) == 3
    assert [len(lora_shapes(mode.path)) for mode in modes] == [2, 4, 2]


def test_the_default_folder_is_in_the_cache(online):
    from huggingface_hub import constants

    plan = plan_serving(online.taia, "sglang")
    (path,) = (mode.path for mode in plan.order.updates)
    assert path.is_relative_to(Path(constants.HF_HOME) / "taia-serving")
    assert path.parents[1].name.startswith("model-taia-")
    assert plan.models == ("model-taia:attention", "model-taia")  # the published mode, and the base


def test_merged_models_have_the_names_of_requests(repository, pico, tmp_path):
    plan = plan_serving(repository, "transformers", ["attention", "none"], out=tmp_path, name="m")
    folder = tmp_path / "merged"
    assert plan.commands[-1].folder == folder
    assert sorted(path.name for path in folder.iterdir()) == ["m:attention", "m:none"]
    assert (folder / "m:none").resolve() == pico.base("llama").resolve()
    from transformers import AutoModelForCausalLM

    model = pico.taia("llama")
    merged = AutoModelForCausalLM.from_pretrained(folder / "m:attention").eval()
    ids = pico.ids()
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, model(ids, inference_modules="attention").logits)
    plan_serving(repository, "transformers", ["attention", "none"], out=tmp_path, name="m")  # the link is made again


# --- Bad input -----------------------------------------------------------------------------------------------------
def test_modes_and_names_that_cannot_be_served(repository, tmp_path):
    for modes, message in (
        ([{"attention": 0}], "masks every update"),
        (["attention", "attention"], "comes twice"),
        (["atention"], "Did you mean 'attention'"),
    ):
        with pytest.raises(SettingError, match=message):
            plan_serving(repository, "vllm", modes, out=tmp_path)
    for name in ("a:b", "a b", "org/model", "a=b", "-x", "", "n" * 97):
        with pytest.raises(ConfigError, match="cannot be the name"):
            plan_serving(repository, "vllm", name=name, out=tmp_path)
    with pytest.raises(ConfigError, match="Did you mean 'vllm'"):
        plan_serving(repository, "vlm", out=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_gguf_that_cannot_be_is_refused(repository, tmp_path):
    mine = tmp_path / "a folder"
    for path, message in (
        (tmp_path / "missing.gguf", "There is no GGUF file .* is not there"),
        ("Q8_0", "There is no GGUF file 'Q8_0': it is not there. Did you mean 'q8_0'"),
        ("./models/base.gguf", r"There is no GGUF file '\./models/base\.gguf': it is not there"),
        ("q" * 300, "There is no GGUF file 'q+': it is not there"),
        (repository, "There is no GGUF file .* is a folder"),
        (repository / "config.json", "is no GGUF file"),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            plan_serving(repository, "llama.cpp", out=mine, gguf=path)
        assert "convert_hf_to_gguf.py" in caught.value.hint
        assert "float32, bfloat16, float16, q8_0" in caught.value.hint
    with pytest.raises(ConfigError, match="one part of several"):
        plan_serving(repository, "llama.cpp", out=mine, gguf="org/base-GGUF/base-00001-of-00002.gguf")
    with pytest.raises(ConfigError, match="--gguf has no meaning with --engine vllm"):
        plan_serving(repository, "vllm", out=tmp_path, gguf="x.gguf")
    assert list(tmp_path.iterdir()) == []


def test_impossible_orders_are_refused_before_the_work(repository, tmp_path):
    with pytest.raises(ConfigError, match="one machine"):
        plan_serving(repository, "transformers", out=tmp_path, tensor_parallel=2)
    assert list(tmp_path.iterdir()) == []


def test_an_engine_that_is_not_installed_is_named(monkeypatch):
    from taia_hub.serving import launching

    monkeypatch.setattr(launching, "_is_importable", lambda name: name not in ("vllm", "httpx"))
    with pytest.raises(MissingDependencyError, match=r"'vllm' is not installed here") as caught:
        check_installed(ENGINES["vllm"])
    assert "pip install vllm" in caught.value.hint
    assert "--print" in caught.value.hint
    with pytest.raises(MissingDependencyError, match="no module 'httpx'") as caught:
        check_installed(ENGINES["llama.cpp"])
    assert "[serve]" in caught.value.hint
    check_installed(ENGINES["transformers"])


def test_the_engine_that_is_there_is_taken(monkeypatch):
    from taia_hub.serving import launching

    there = {"vllm", "sglang", *ENGINES["transformers"].modules}
    monkeypatch.setattr(launching, "_is_importable", there.__contains__)
    assert choose_engine(None).name == "vllm"
    assert choose_engine("base.gguf").name == "llama.cpp"  # named by what it is served from, there or not
    there -= {"vllm"}
    assert choose_engine(None).name == "sglang"
    there -= {"sglang"}
    assert choose_engine(None).name == "transformers"
    there |= set(ENGINES["llama.cpp"].modules)
    assert choose_engine(None).name == "llama.cpp"  # which the base is written for
    there.clear()
    with pytest.raises(MissingDependencyError, match="No engine is installed here") as caught:
        choose_engine(None)
    assert "[serve]" in caught.value.hint
    assert "--engine" in caught.value.hint


# --- Starting ------------------------------------------------------------------------------------------------------
def test_a_command_runs_with_its_files_and_variables(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("PORT", "1")
    alone = "os.getsid(0) == os.getpid()"
    shown = f"os.environ['X'], 'PORT' in os.environ, open('f').read(), {alone}"
    script = f"import os; print({shown}, flush=True); os._exit(3)"
    command = Command(
        (("python", "-c", script),),
        folder=tmp_path,
        environment={"X": "x"},
        without=("PORT",),
        files={tmp_path / "f": "content"},
    )
    assert run(command) == 3
    assert capfd.readouterr().out == "x False content True\n"
    with pytest.raises(MissingDependencyError, match="no program 'no-such-engine'"):
        run(Command((("no-such-engine",),)))


WAITS = (
    "import os, pathlib, signal, sys, time\n"
    "{handlers}\n"
    "path = pathlib.Path('ready')\n"
    "path.with_suffix('.new').write_text(str(os.getpid()))\n"
    "path.with_suffix('.new').rename(path)\n"
    "signal.alarm(60)\n"
    "while True: time.sleep(0.02)\n"
)


@pytest.mark.parametrize(
    ("name", "handlers", "after", "code"),
    [
        ("SIGTERM", "", 1, 0),
        # it ends by SIGTERM, and not by Ctrl-C, which some call an abort
        ("SIGINT", "signal.signal(signal.SIGINT, lambda *_: sys.exit(1))", 1, 0),
        ("SIGINT", "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))", 1, 7),
        # it takes its time: a second Ctrl-C reaches it
        ("SIGINT", "signal.signal(signal.SIGTERM, lambda *_: pathlib.Path('asked').touch())", 2, 0),
    ],
)
def test_a_signal_asks_a_server_to_end(tmp_path, name, handlers, after, code):
    number, ready = getattr(signal, name), tmp_path / "ready"

    def send():  # while `run` waits, its handlers stand in for those of the tests
        for path in (ready, tmp_path / "asked")[:after]:
            while not path.exists():
                time.sleep(0.02)
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    threading.Thread(target=send, daemon=True).start()
    assert run(Command((("python", "-c", WAITS.format(handlers=handlers)),), folder=tmp_path)) == code
    assert signal.getsignal(number) is before
    with pytest.raises(ProcessLookupError):
        os.kill(int(ready.read_text()), 0)


def test_a_child_that_a_signal_ended_has_the_shells_code():
    assert run(Command((("python", "-c", "import os; os.kill(os.getpid(), 15)"),))) == 143


# --- The command ---------------------------------------------------------------------------------------------------
@pytest.fixture
def taia_serve():
    import typer

    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(serve_model)

    def call(*words):
        return CliRunner().invoke(app, [str(word) for word in words])

    return call


def test_print_shows_the_commands_and_starts_nothing(taia_serve, repository, tmp_path):
    words = (repository, "--engine", "vllm", "--mode", "attention", "--mode", "all", "--name", "m", "--out", tmp_path)
    result = taia_serve(*words, "--print", "--tensor-parallel", 2, "--", "--max-model-len", 4096)
    assert result.exit_code == 0, result.output
    lines = [line for line in result.stdout.splitlines() if not line.startswith("#")]
    text = "\n".join(lines)
    assert "--lora-modules m:attention=" in text
    assert text.endswith("--port 8000 \\\n    --max-model-len 4096")
    assert subprocess.run(["sh", "-n", "-c", result.stdout], check=True)


def test_print_writes_what_the_command_reads(taia_serve, repository, pico, tmp_path):
    from tests.engines.test_gguf_lora import write_base

    base = write_base(tmp_path / "base.gguf", of=pico.base("llama"))
    result = taia_serve(repository, "--engine", "llama.cpp", "--gguf", base, "--out", tmp_path / "o", "--print")
    assert result.exit_code == 0, result.output
    (path,) = (tmp_path / "o").glob("llama_cpp_server-*.json")
    assert path.name in result.stdout
    described = json.loads(path.read_text())
    assert Path(described["base"]) == base
    assert list(described["served"]["models"])[:2] == ["pico-taia", "pico-taia:attention"]
    assert [Path(part["path"]).is_file() for part in described["served"]["parts"]] == [True, True]


def test_an_engine_that_ends_by_itself_is_an_error(taia_serve, repository, tmp_path, monkeypatch):
    """Its own last lines may be of a debugger, as llama.cpp's where it aborts."""
    monkeypatch.setattr("taia_hub.serving.check_startable", lambda *_: None)
    for code in (134, 0):
        monkeypatch.setattr("taia_hub.serving.run", lambda *_, code=code: code)
        result = taia_serve(repository, "--engine", "vllm", "--out", tmp_path, "--", "--max-model-len", "1")
        said = (
            "Error: vllm ended with exit code 134.\nHint: Its lines above say why; its flags here are --max-model-len 1"
        )
        assert (result.exit_code, said in result.stderr) == (code, bool(code))


def test_a_gguf_is_looked_at_before_anything_else(taia_serve, repository, tmp_path, monkeypatch):
    """Who has to install an engine first learns at once that the file is not there."""
    from taia_hub.serving import launching

    monkeypatch.setattr(launching, "_is_importable", lambda name: False)
    for words in ((), ("--engine", "llama.cpp")):
        result = taia_serve(repository, *words, "--gguf", tmp_path / "base.gguf")
        assert "There is no GGUF file" in str(result.exception)
    assert "No engine is installed" in str(taia_serve(repository).exception)


def test_the_memory_of_what_is_served_is_printed(taia_serve, repository, pico, tmp_path):
    from tests.engines.test_gguf_lora import write_base

    def said(engine, *words):
        given = (repository, "--engine", engine, "--mode", "attention", "--mode", "all", "--out", tmp_path / engine)
        result = taia_serve(*given, "--print", *words)
        assert result.exit_code == 0, result.output
        (line,) = (line for line in result.stdout.splitlines() if line.startswith("# Memory: "))
        return line

    for number in (4, 2):  # vLLM rounds what is saved in four bytes
        told = ("--", "--dtype=float32") if number == 4 else ()
        base = _size(weights_bytes(pico.base("llama")) * number // 4)
        token = _size(kv_bytes(json_of(pico.base("llama")), itemsize=number))
        vllm = said("vllm", *told)
        adapted = _size(3 * weights_bytes(tmp_path / "vllm" / "adapters" / "all") * number // 2)  # rank 4 in slots of 8
        assert vllm.startswith(f"# Memory: {base} of weights, at least {adapted} of LoRAs (3 slots of rank 8), {token}")
    assert "(3 slots of rank 4)" in said("sglang")
    assert "(5 slots of rank 64)" in said("vllm", "--", "--max-loras", "5", "--max-lora-rank=64")
    gguf = write_base(tmp_path / "base.gguf", of=pico.base("llama"))
    assert f"# Memory: {_size(gguf.stat().st_size)} of GGUF weights, " in said("llama.cpp", "--gguf", gguf)
    assert f"# Memory: {_size(2 * weights_bytes(pico.base('llama')))} of weights where 2 models" in said("transformers")


def test_weights_that_are_not_on_this_disk_are_not_counted(repository, pico, tmp_path):
    plan = plan_serving(repository, "vllm", out=tmp_path / "out")
    shutil.copy(pico.base("llama") / "config.json", tmp_path)
    assert "# Memory: the base's weights, at least " in dataclasses.replace(plan, base=tmp_path).text()


def test_parts_of_the_weights_are_not_taken_for_all(pico, tmp_path):
    pico.plain("llama").save_pretrained(tmp_path, max_shard_size="20KB")
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 1
    assert weights_bytes(tmp_path) == weights_bytes(pico.base("llama"))
    shards[0].unlink()
    with pytest.raises(ConfigError, match="no safetensors"):
        weights_bytes(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 16000000\n"]
)
def test_files_that_hold_no_tensors_are_named(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(RepositoryError, match="truncated or no safetensors file"):
        weights_bytes(tmp_path)


def test_a_text_config_may_be_null(repository, pico, tmp_path):
    plan = plan_serving(repository, "vllm", out=tmp_path / "out")
    shutil.copytree(pico.base("llama"), tmp_path / "base")
    (tmp_path / "base" / "config.json").write_text(json.dumps({**json_of(pico.base("llama")), "text_config": None}))
    assert dataclasses.replace(plan, base=tmp_path / "base").text() == plan.text()


def test_the_guide_is_printed_without_a_repository(taia_serve):
    result = taia_serve("--guide")
    assert result.exit_code == 0, result.output
    for title in ("Ten models on one base", "Any number of modes", "Several servers", "One machine", "What to expect"):
        assert f"\n## {title}" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 120


def test_what_cannot_be_started_is_said_before_the_work(taia_serve, repository, tmp_path):
    with socket.socket() as used:
        used.bind(("127.0.0.1", 0))
        used.listen()
        port = used.getsockname()[1]
        result = taia_serve(repository, "--engine", "transformers", "--port", port, "--out", tmp_path)
    assert isinstance(result.exception, ConfigError)
    assert "in use" in result.exception.message
    result = taia_serve(repository, "--engine", "vllm", "--nodes", 2, "--head", "h", "--out", tmp_path)
    assert "--print" in result.exception.hint
    assert list(tmp_path.iterdir()) == []


# --- Memory --------------------------------------------------------------------------------------------------------
def test_the_formula_of_memory_is_that_of_files(repository, pico, tmp_path):
    plan = plan_serving(repository, "vllm", ["attention", "all"], out=tmp_path)
    base = pico.plain("llama")
    assert weights_bytes(pico.base("llama")) == sum(one.numel() * one.element_size() for one in base.parameters())
    for mode in plan.order.updates:
        shapes = lora_shapes(mode.path)
        linear = dict(base.named_modules())
        assert all(tuple(linear[path].weight.shape) == shape for path, shape in shapes.items())
        assert weights_bytes(mode.path) == lora_bytes(shapes, mode.rank, 4)
    with pytest.raises(ConfigError, match="no safetensors"):
        weights_bytes(tmp_path)


def test_slots_are_padded_to_the_largest_rank(repository, pico, tmp_path):
    plan = plan_serving(repository, "vllm", ["all"], out=tmp_path)
    shapes, base = lora_shapes(plan.order.updates[0].path), weights_bytes(pico.base("llama"))
    token = kv_bytes(json_of(pico.base("llama")), itemsize=4)
    held = slots_memory(base, token, shapes, slots=10, max_rank=16, itemsize=4)
    assert held.adapters == 10 * 4 * weights_bytes(plan.order.updates[0].path)  # rank 4 in slots of 16
    assert held.total(100) == base + held.adapters + 100 * token
    assert merged_memory([base, base], token).total(0) == 2 * base


def test_keys_and_values_of_a_token(pico):
    model, ids = pico.plain("llama"), pico.ids(rows=1, length=5)
    with torch.no_grad():
        cache = model(ids, use_cache=True).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert held == 5 * kv_bytes(model.config.to_dict(), itemsize=4)


def test_the_guide_names_what_llama_cpp_answers_by_mode(taia_serve):
    text = taia_serve("--guide").stdout
    said = " ".join(text[text.index("- llama.cpp is its own server") :].split("\n- ")[0].split())
    for path in GENERATING:
        name = path.removeprefix("/v1/")
        known = f"`{path}`" if path in ("/completion", "/infill") else name.replace("/", " ").strip()
        assert known in said, path


def test_the_guides_figures():
    """Llama-3.1-8B in 16 bits, as the guide says."""
    hidden, inner, keys = 4096, 14336, 1024
    layer = {"q": (hidden, hidden), "k": (keys, hidden), "v": (keys, hidden), "o": (hidden, hidden)}
    ffn = {"gate": (inner, hidden), "up": (inner, hidden), "down": (hidden, inner)}
    assert round(32 * lora_bytes({**layer, **ffn}, rank=16, itemsize=2) / 1e6) == 84
    assert round(32 * lora_bytes(layer, rank=16, itemsize=2) / 1e6) == 27
    config = {"num_hidden_layers": 32, "hidden_size": hidden, "num_attention_heads": 32, "num_key_value_heads": 8}
    assert kv_bytes(config) == 131072


def test_the_keywords_of_a_plan_are_the_placement_of_an_order():
    shown = inspect.signature(plan_serving).parameters
    placement = [field for field in dataclasses.fields(Order) if "help" in field.metadata]
    assert {"host", "port", "nodes"} < {field.name for field in placement}
    for field in placement:
        assert shown[field.name].default == field.default
    assert not any(one.kind is one.VAR_KEYWORD for one in shown.values())


# --- Whose tokenizer, and where answers end --------------------------------------------------------------------------
@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_an_engine_gets_the_models_own_tokenizer_and_ends(online, repo_id, pico, tokenizer, tmp_path, engine):
    flag = {"vllm": "--tokenizer", "sglang": "--tokenizer-path"}[engine]
    online.push_adapter(repo_id)
    own = copy.deepcopy(tokenizer)
    own.chat_template = "{{ messages[0]['content'] }}</s>"
    own.push_to_hub(repo_id)
    create_repository(online.base, repo_id, out=tmp_path / "made")
    generation = tmp_path / "made" / "generation_config.json"
    generation.write_text(json.dumps({**json.loads(generation.read_text()), "eos_token_id": [2, 5]}))
    plan = plan_serving(tmp_path / "made", engine, ["attention"], out=tmp_path / "out")
    words = plan.commands[-1].words
    folder = Path(words[words.index(flag) + 1])
    assert AutoTokenizer.from_pretrained(folder).chat_template == own.chat_template
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [2, 5]
    if engine == "vllm":
        assert words[words.index("--generation-config") + 1] == str(folder)
    else:
        assert "[2, 5]" in plan.text()
    again = plan_serving(tmp_path / "made", engine, ["attention"], out=tmp_path / "out", extra=[flag, "mine"])
    assert again.commands[-1].words.count(flag) == 1
    assert again.order.tokenizer == folder


def test_a_tokenizer_of_the_same_tokens_that_cuts_texts_otherwise_is_another(online, repo_id, tokenizer, tmp_path):
    online.push_adapter(repo_id)
    own = copy.deepcopy(tokenizer)
    own.backend_tokenizer.normalizer = Lowercase()
    own.push_to_hub(repo_id)
    create_repository(online.base, repo_id, out=tmp_path / "made")
    plan = plan_serving(tmp_path / "made", "vllm", ["attention"], out=tmp_path / "out")
    assert "--tokenizer" in plan.commands[-1].words


def test_an_engine_keeps_the_bases_tokenizer_where_it_is_the_models(online, tmp_path):
    plan = plan_serving(online.taia, "vllm", ["attention"], out=tmp_path)
    assert plan.order.tokenizer is None
    assert "--tokenizer" not in plan.commands[-1].words


def test_llama_cpp_gets_the_models_own_chat_template(online, repo_id, pico, tokenizer, tmp_path):
    from tests.engines.test_gguf_lora import write_base

    online.push_adapter(repo_id)
    own = copy.deepcopy(tokenizer)
    own.chat_template = "{{ messages[0]['content'] }}</s>"
    own.push_to_hub(repo_id)
    create_repository(online.base, repo_id, out=tmp_path / "made")
    asked = {"gguf": write_base(tmp_path / "base.gguf", of=pico.base("llama")), "out": tmp_path / "out"}

    def settings(*extra):
        plan = plan_serving(tmp_path / "made", "llama.cpp", extra=extra, **asked)
        assert "chat template of this model" in plan.notes[-1]
        return json.loads(next(iter(plan.commands[-1].files.values())))["settings"]

    assert settings() == {"chat_template": own.chat_template}
    assert settings("--chat-template=chatml") == {"chat_template": "chatml"}
    (folder,) = (tmp_path / "out").glob("tokenizer-*")
    (folder / "chat_template.jinja").unlink()  # as older versions of transformers keep it
    config = json.loads((folder / "tokenizer_config.json").read_text())
    for value in ("x", [{"name": "tools", "template": "y"}, {"name": "default", "template": "x"}]):
        (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": value}))
        assert settings() == {"chat_template": "x"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": None}))
    assert settings() == {}
