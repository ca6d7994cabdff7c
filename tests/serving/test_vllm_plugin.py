"""vLLM's plug-in, before modules that stand for vLLM: names, what is made of them, and every refusal's text."""

import asyncio
import errno
import json
import sys
import threading
from dataclasses import dataclass
from http import HTTPStatus
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType

import pytest
import tomllib
import torch
from safetensors.torch import load_file

from taia_hub import TAIAForCausalLM
from taia_hub.serving import plan_serving, vllm_plugin
from taia_hub.serving.vllm_plugin import REPOS, ROOT, register
from tests.conftest import logits


@dataclass
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str


class GracefulHTTPError(Exception):
    def __init__(self, message, http_status):
        super().__init__(message)
        self.http_status = http_status


class Registry(dict):
    register_resolver = dict.__setitem__


@pytest.fixture
def vllm(monkeypatch, tmp_path):
    """What vLLM does with a name: it asks its resolvers in turn; `loads` says whether it loads what it gets."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    monkeypatch.delenv(ROOT, raising=False)
    monkeypatch.delenv(REPOS, raising=False)
    parts = {
        "vllm": {},
        "vllm.lora": {},
        "vllm.exceptions": {"GracefulHTTPError": GracefulHTTPError},
        "vllm.lora.request": {"LoRARequest": LoRARequest},
        "vllm.lora.resolver": {"LoRAResolverRegistry": Registry()},
    }
    for name, values in parts.items():
        module = ModuleType(name)
        module.__dict__.update(values)
        monkeypatch.setitem(sys.modules, name, module)
    register()
    resolvers = list(sys.modules["vllm.lora.resolver"].LoRAResolverRegistry.values())

    def ask(base, name, loads=True):
        async def asked():
            for resolver in resolvers:
                found = await resolver.resolve_lora(str(base), name)
                if found is not None and loads:
                    return found
            return None

        return asyncio.run(asked())

    return ask


@pytest.fixture(scope="module")
def root(pico, tmp_path_factory):
    """A folder of repositories, one of them of another base."""
    folder = tmp_path_factory.mktemp("root")
    for name, base in (("one", "llama"), ("group/two", "llama"), ("other", "qwen3")):
        TAIAForCausalLM.from_adapter(pico.base(base), pico.adapter(base)).save_pretrained(folder / name)
    return folder


def refused(vllm, base, name, status):
    with pytest.raises(GracefulHTTPError) as caught:
        vllm(base, name)
    assert caught.value.http_status == status
    return str(caught.value)


def test_vllm_finds_the_plug_in_by_its_entry_point():
    described = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert EntryPoint("taia", described["entry-points"]["vllm.general_plugins"]["taia"], "").load() is register


def test_a_vllm_that_lacks_a_part_goes_on_without(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "vllm", None)
    register()
    assert "made for vLLM 0.32" in caplog.text


def test_registering_imports_no_torch(clean_process):
    ran = clean_process("import sys, taia_hub.serving.vllm_plugin as p; p.register(); print('torch' in sys.modules)")
    assert (ran.returncode, ran.stdout) == (0, "False\n"), ran.stderr


def test_a_name_of_the_hub_becomes_the_lora_that_serve_makes(vllm, online):
    made = vllm(online.base, f"{online.taia}:attention")
    plan = plan_serving(online.taia, "vllm", ["attention"])  # the same folder, used again
    assert made == LoRARequest(f"{online.taia}:attention", 1, str(plan.order.modes[0].path))
    assert vllm(online.base, online.taia).lora_path == made.lora_path  # what it publishes
    assert vllm(online.base, f"{online.adapter}:TAIA").lora_path != made.lora_path
    online.hub.fail = lambda method, path: 404  # what was opened is in the cache
    for name in ("base", "llama", "org", ""):
        assert vllm(online.base, name) is None


def test_weights_that_have_one_slug_have_folders_of_their_own(vllm, root, pico, monkeypatch):
    monkeypatch.setenv(ROOT, str(root))
    names = [f"one:{json.dumps({key: 1})}" for key in ("*.q_proj", "?*.q_proj", "attention")]
    names.append("group/two:" + json.dumps({f"model.layers.{'[0-1]' * n}*": 1 for n in (1,)} | {"*self_attn*": 0.5}))
    paths = [Path(vllm(pico.base("llama"), name).lora_path) for name in names]
    assert len(set(paths)) == 4
    assert len(load_file(paths[0] / "adapter_model.safetensors")) == 4
    assert (
        load_file(paths[2] / "adapter_model.safetensors").keys()
        > load_file(paths[0] / "adapter_model.safetensors").keys()
    )


def test_a_name_may_hold_a_ramp_and_weights_beyond_1(vllm, root, pico, monkeypatch):
    monkeypatch.setenv(ROOT, str(root))
    beyond = {"attention": 1.5, "ffn": -1, "allow_extrapolation": True}
    for setting in ({"*@0-1": [0.25, 1]}, beyond):
        path = vllm(pico.base("llama"), f"one:{json.dumps(setting)}").lora_path
        expected = logits(pico.taia("llama"), pico.ids(), inference_modules=setting)
        assert torch.allclose(logits(pico.peft("llama", Path(path)), pico.ids()), expected, atol=1e-4)
    text = refused(vllm, pico.base("llama"), 'one:{"attention": 1.5}', 400)
    assert '"allow_extrapolation": true' in text


@pytest.mark.parametrize("mode", ["none", "base", '{"attention": 0}', "{}"])
def test_the_base_is_a_lora_of_zeros(vllm, root, pico, mode, monkeypatch):
    """Of one pair: vLLM refuses a file without any."""
    monkeypatch.setenv(ROOT, str(root))
    path = Path(vllm(pico.base("llama"), f"one:{mode}").lora_path)
    tensors = load_file(path / "adapter_model.safetensors")
    assert sorted(name.rpartition("lora_")[2] for name in tensors) == ["A.weight", "B.weight"]
    assert not any(one.any() for one in tensors.values())
    assert json.loads((path / "adapter_config.json").read_text())["r"] == 4
    assert Path(vllm(pico.base("llama"), "one:attention").lora_path).parent == path.parent


@pytest.mark.parametrize(
    ("name", "status", "said"),
    [
        ("one:attn", 400, "Unknown inference modules 'attn'. Did you mean 'attention'"),
        ('one:{"attention": 2}', 400, "must be a number from 0"),
        ('one:{"attention": 1', 400, "is no JSON"),
        ("one:", 400, "Unknown inference modules ''"),
        ('one:{"ffn@7": 1}', 400, "its adapted ffn modules are in layers 0-1"),
        ("other:attention", 400, r"vllm serve .* --enable-lora"),
        ("org/not-there:attention", 404, "no TAIA repository or adapter of that name on the Hub"),
        ("../one:attention", 404, "neither a Hub id nor a folder below '"),
        ("group/../one:attention", 404, "neither a Hub id"),
        ("/etc:attention", 404, "neither a Hub id"),
        ("~:attention", 404, "neither a Hub id"),
        ("one@../two:attention", 404, "neither a Hub id"),
        ("x" * 5000 + ":attention", 404, "neither a Hub id"),
        ("org/" + "x" * 5000 + ":attention", 404, "neither a folder here nor a Hub id"),
        ('one:{"ffn": 1, "*": 0.5, "ffn": 0}', 400, "the key 'ffn' comes twice"),
    ],
)
def test_what_cannot_be_served_is_said(vllm, root, pico, hub, name, status, said, monkeypatch):
    import re

    monkeypatch.setenv(ROOT, str(root))
    assert re.search(said, refused(vllm, pico.base("llama"), name, status))


def test_a_folder_that_nobody_named_is_none(vllm, root, pico, monkeypatch):
    """A request names no path: neither below the working folder, nor where no root is set."""
    monkeypatch.chdir(root)
    assert vllm(pico.base("llama"), "one") is None
    for name in ("one:attention", "group/two:attention", "group/two@adapter:attention", f"{root}/one:attention"):
        assert f"{ROOT} allows one" in refused(vllm, pico.base("llama"), name, 404)


def test_the_operator_may_name_the_repositories(vllm, online, monkeypatch):
    monkeypatch.setenv(REPOS, "org/another, org/adapter")
    assert "is not served here" in refused(vllm, online.base, f"{online.taia}:all", 404)
    assert vllm(online.base, f"{online.adapter}:all")


def test_a_base_in_the_cache_is_the_base_of_its_commit(vllm, online):
    from taia_hub import hub as hub_

    folder = hub_.fetch(online.base, ["config.json"]).folder
    assert vllm(folder, f"{online.taia}:none")
    text = refused(vllm, "org/another-base", f"{online.taia}:none", 400)
    assert f"an update of '{online.base}', and the base model served here is 'org/another-base'" in text
    assert f"vllm serve {online.base} --revision {online.base_sha} --enable-lora" in text


def test_a_private_repository_is_refused_in_words(vllm, online):
    online.hub.fail = lambda method, path: 401
    assert "org/private-one" in refused(vllm, online.base, "org/private-one:all", 404)


@pytest.mark.parametrize(("answer", "status"), [(503, 503), (429, 503), (500, 503), (403, 404), (404, 404)])
def test_a_hub_that_is_ill_is_no_repository_that_is_not_there(vllm, online, answer, status):
    online.hub.fail = lambda method, path: answer
    refused(vllm, online.base, f"org/ill-{answer}:all", status)


def test_experts_and_whole_modules_are_refused_in_words(vllm, pico, tmp_path, monkeypatch):
    monkeypatch.setenv(ROOT, str(tmp_path))
    lora = pico.lora("llama", target_modules=["q_proj"], modules_to_save=["lm_head"])
    for name, base, adapter in (
        ("saved", "llama", pico.adapter("llama", lora, "plugin-saved")),
        ("experts", "mixtral", pico.adapter("mixtral")),
    ):
        TAIAForCausalLM.from_adapter(pico.base(base), adapter).save_pretrained(tmp_path / name)
        assert "taia merge" in refused(vllm, pico.base(base), f"{name}:all", 400)


def test_zeros_that_were_lost_are_made_again(vllm, root, pico, monkeypatch):
    monkeypatch.setenv(ROOT, str(root))
    weights = Path(vllm(pico.base("llama"), "one:none").lora_path) / "adapter_model.safetensors"
    for damage in (weights.unlink, lambda: weights.write_bytes(weights.read_bytes()[:-8])):
        damage()
        assert Path(vllm(pico.base("llama"), "one:none").lora_path) == weights.parent
        assert load_file(weights)


def test_what_vllm_does_not_load_is_explained(vllm, root, pico, monkeypatch):
    monkeypatch.setenv(ROOT, str(root))
    with pytest.raises(GracefulHTTPError, match=r"(?s)rank 4; its log says why.*--max-lora-rank 8") as caught:
        vllm(pico.base("llama"), "one:all", loads=False)
    assert caught.value.http_status == HTTPStatus.BAD_REQUEST


def test_a_full_disk_leaves_nothing_and_the_next_request_works(vllm, root, pico, monkeypatch, tmp_path):
    from taia_hub.serving import preparing

    monkeypatch.setenv(ROOT, str(root))
    export = preparing.export_adapter

    def full(files, folder, *args, **kwargs):
        export(files, folder, *args, **kwargs)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(preparing, "export_adapter", full)
    said = refused(vllm, pico.base("llama"), "one:ffn", 503)
    assert "no space" in said.lower()
    assert not [path for path in (tmp_path / "home").rglob("*") if path.is_file() and path.name != ".lock"]
    monkeypatch.setattr(preparing, "export_adapter", export)
    assert load_file(Path(vllm(pico.base("llama"), "one:ffn").lora_path) / "adapter_model.safetensors")


def test_two_servers_on_one_cache_make_one_lora(vllm, root, pico, monkeypatch):
    from taia_hub.serving import preparing

    monkeypatch.setenv(ROOT, str(root))
    export, made, paths = preparing.export_adapter, [], []
    monkeypatch.setattr(preparing, "export_adapter", lambda *a, **k: [made.append(1), export(*a, **k)][1])
    monkeypatch.setattr(vllm_plugin, "_ALONE", threading.Semaphore(2))  # as in two processes
    ask = [
        threading.Thread(target=lambda: paths.append(vllm(pico.base("llama"), "one:all").lora_path)) for _ in range(2)
    ]
    for one in ask:
        one.start()
    for one in ask:
        one.join()
    assert (len(made), len(set(paths)), len(paths)) == (1, 1, 2)
