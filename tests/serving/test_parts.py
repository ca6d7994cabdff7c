"""The GGUF LoRAs that llama.cpp weighs in each request: how an update is cut, made once, and what cannot be made."""

import errno
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from peft import LoraConfig

from taia_hub import TAIAForCausalLM
from taia_hub.engines.parts import Served
from taia_hub.errors import RepositoryError, SettingError, TAIAError, UnsupportedUpdateError
from taia_hub.serving import plan_serving, preparing
from tests.conftest import renew_manifest
from tests.engines.test_gguf_lora import read, write_base

HALF = {"attention": 1, "ffn@0": 0.5}


@pytest.fixture(scope="module")
def gguf(pico, tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("base") / "base.gguf", of=pico.base("llama"))


@pytest.fixture
def plan(saved_taia, gguf, tmp_path):
    """Plans to serve a repository with some modes; what is prepared lies in `tmp_path / "out"`."""

    def make(*modes, repo=saved_taia, **keywords):
        return plan_serving(repo, "llama.cpp", modes, name="m", **{"gguf": gguf, "out": tmp_path / "out", **keywords})

    return make


def labels(plan):
    return [part.label for part in plan.order.parts]


def served(plan):
    (text,) = plan.commands[-1].files.values()
    return Served.of(json.loads(text)["served"])


def repository(pico, folder, label="lora", config=None, published=None):
    TAIAForCausalLM.from_adapter(pico.base("llama"), pico.adapter("llama", config, label)).save_pretrained(folder)
    if published is not None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "inference_modules": published}))
        renew_manifest(folder)
    return folder


def test_a_role_is_a_lora_and_all_modes_are_listed(plan, tmp_path):
    found = plan()
    assert found.models == ("m", "m:attention", "m:ffn", "m:all", "m:none")
    assert labels(found) == ["attention", "ffn"]
    assert [part.path for part in found.order.parts] == [
        tmp_path / "out" / "gguf" / label / "adapter.gguf" for label in ("attention", "ffn")
    ]
    for part, inside in zip(found.order.parts, ("attn_", "ffn_"), strict=True):
        assert all(inside in name for name in read(part.path)[1])
    assert found.prepared[1].endswith(f"--mode ffn --out {tmp_path}/out/gguf/ffn-lora")
    assert f"# Models: {', '.join(found.models)}" in found.text()
    assert served(found).parts == found.order.parts
    assert plan("all", HALF).models == ("m:all", "m:attention-1-ffn-0-0.5", "m", "m:attention", "m:ffn", "m:none")


def test_each_lora_has_the_scale_of_its_modules_in_full(plan, pico):
    layers = dict(pico.taia("llama").named_modules())
    for part in plan(HALF).order.parts[1:]:
        reader, tensors = read(part.path)
        scale = np.float32(reader.get_field("adapter.lora.alpha").contents()) / part.rank
        for module in part.modules:
            name = f"blk.{module.layer}.ffn_{module.path.rpartition('.')[2].removesuffix('_proj')}.weight"
            layer = layers[module.path]
            expected = layer.get_delta_weight("default").detach().numpy()
            made = scale * tensors[f"{name}.lora_b"] @ tensors[f"{name}.lora_a"]
            np.testing.assert_allclose(made, expected, rtol=1e-5, atol=1e-6)


def test_the_header_of_the_bases_file_is_parsed_once(plan, monkeypatch):
    """That of 100,000 tokens takes seconds."""
    package = pytest.importorskip("gguf")
    parsed, reader = [], package.GGUFReader

    def counted(path, *args):
        parsed.append(path)
        return reader(path, *args)

    monkeypatch.setattr(package, "GGUFReader", counted)
    found = plan()
    assert parsed == [found.order.gguf]


def test_loras_are_made_once_and_kept_where_the_cut_is_another(plan, pico, gguf, tmp_path):
    def stamps(found):
        return {part.label: part.path.stat().st_mtime_ns for part in found.order.parts}

    made = stamps(plan())
    assert stamps(plan("attention")) == made
    cut = stamps(plan(HALF))
    assert list(cut) == ["attention", "ffn@0", "ffn@1"]
    assert cut["attention"] == made["attention"]
    assert stamps(plan("all", trust_remote_code=True)) == made
    other = tmp_path / "quantised.gguf"
    other.write_bytes(gguf.read_bytes())
    assert stamps(plan(gguf=other)) == made  # a LoRA depends on the base's shapes alone
    larger = write_base(tmp_path / "larger.gguf", head=True, of=pico.base("llama"))
    assert all(stamp != made[label] for label, stamp in stamps(plan(gguf=larger)).items())


def test_the_cut_follows_the_published_setting(plan, pico, tmp_path):
    repo = repository(pico, tmp_path / "r", published=[["attention", 1.0], ["ffn@0", 0.5]])
    found = plan(repo=repo)
    assert labels(found) == ["attention", "ffn@0", "ffn@1"]
    assert served(found).weights(served(found).setting("m")) == (1, 0.5, 0)
    assert labels(plan({"*.up_proj": 0.5}, repo=repo))[0] == "attention"
    beyond = [["attention", 1.5], ["ffn@0-1", [-1, 0.5]], ["allow_extrapolation", True]]
    found = plan(repo=repository(pico, tmp_path / "b", published=beyond))
    assert served(found).weights(served(found).setting("m")) == (1.5, -1, 0.5)
    globs = repository(pico, tmp_path / "g", published=[["*.layers.1.mlp.up_proj", 0.5]])
    found = plan(repo=globs, out=tmp_path / "globs")
    assert labels(found)[0] == "attention"
    assert [len(part.modules) for part in found.order.parts] == [8, 5, 1]
    assert [label.partition("-")[0] for label in labels(found)[1:]] == ["ffn", "ffn"]
    assert sum(len(read(part.path)[1]) for part in found.order.parts) == 2 * 14


def test_what_no_lora_can_hold_is_known_before_the_base_is_written(plan, pico, tmp_path, monkeypatch):
    from taia_hub.serving import planning

    monkeypatch.setattr(planning, "base_gguf", lambda *_, **__: pytest.fail("the base is long work"))
    config = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM")
    with pytest.raises(UnsupportedUpdateError, match="modules_to_save"):
        plan("all", repo=repository(pico, tmp_path / "r", "head-too", config))


def test_what_llama_cpp_cannot_take_is_left_out_where_it_is_not_wanted(plan, pico, tmp_path):
    config = LoraConfig(r=4, target_modules=["q_proj", "up_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM")
    repo = repository(pico, tmp_path / "r", "with-head", config)
    for modes in ((), ("attention",), ({"attention": 0.5, "ffn": 1},)):
        found = plan(*modes, repo=repo)
        assert labels(found) == ["attention", "ffn", "other"]
        assert not {"m:all"} & set(found.models)
        assert {"m", "m:attention", "m:ffn", "m:none"} <= set(found.models)
        every, note = found.notes
        assert every.startswith("Every other setting is there too: as the model m:SETTING")
        assert note.startswith("The update of 'other' is not served: The update of 'lm_head' cannot be part of")
        with pytest.raises(SettingError, match="'all' asks for the update of 'other', which is not served here"):
            served(found).weights(served(found).setting("m:all"))
    with pytest.raises(UnsupportedUpdateError, match=r"'lm_head' cannot be part of a plain LoRA.*modules_to_save"):
        plan("attention", "all", repo=repo, out=tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_an_update_of_experts_serves_its_attention(plan, pico, tmp_path):
    """The whole of it is refused before anything is written."""
    TAIAForCausalLM.from_adapter(pico.base("qwen3_moe"), pico.adapter("qwen3_moe")).save_pretrained(tmp_path / "r")
    with pytest.raises(UnsupportedUpdateError, match="experts"):
        plan("all", repo=tmp_path / "r")
    assert not (tmp_path / "out").exists()


def test_modules_that_change_nothing_have_no_lora(plan, pico, tmp_path):
    config = LoraConfig(r=4, lora_alpha=4, target_modules="all-linear", alpha_pattern={r".*\.mlp\..*": 0})
    found = plan("all", repo=repository(pico, tmp_path / "r", "idle-ffn", config))
    assert labels(found) == ["attention", "ffn"]
    assert [part.path is None for part in found.order.parts] == [False, True]
    assert len(found.notes) == 1
    assert served(found).weights(served(found).setting("m:ffn")) == (0, 1)


def test_a_gguf_of_another_base_is_refused(plan, tmp_path):
    with pytest.raises(TAIAError, match=r"other\.gguf"):
        plan(gguf=write_base(tmp_path / "other.gguf", hidden=32))
    assert not (tmp_path / "out").exists()


def test_two_servers_of_one_folder_make_each_lora_once(plan, monkeypatch):
    made, export = [], preparing.export_adapter

    def counted(files, folder, setting, **keywords):
        made.append(setting.label)
        return export(files, folder, setting, **keywords)

    monkeypatch.setattr(preparing, "export_adapter", counted)
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(lambda port: plan(port=port), (8000, 8001))
    assert sorted(made) == ["attention", "ffn"]
    assert one.order.parts == other.order.parts
    assert set(one.commands[-1].files) != set(other.commands[-1].files)


def test_a_full_disk_leaves_nothing_half(plan, monkeypatch, tmp_path):
    write = preparing.write_gguf_lora

    def full(adapter, base, out):
        written = write(adapter, base, out)
        if "ffn" in str(out):
            out.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        return written

    with monkeypatch.context() as patched:
        patched.setattr(preparing, "write_gguf_lora", full)
        with pytest.raises(RepositoryError, match="space"):
            plan()
    assert [path.name for path in (tmp_path / "out" / "gguf").iterdir()] == ["attention"]
    assert len(read(plan().order.parts[1].path)[1]) == 2 * 2 * 3
