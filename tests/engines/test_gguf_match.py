"""A GGUF of another model is known by its shapes and its numbers, in any precision."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from taia_hub import hub
from taia_hub.engines.gguf_match import check_gguf_base
from taia_hub.errors import UpdateMismatchError

gguf = pytest.importorskip("gguf")


def write_match(path, folder, kind="F16", **changed):
    """The header of a Llama's GGUF, and those of its tensors that are compared, as a kind of numbers."""
    config, tensors = hub.read_json(folder / hub.CONFIG), load_file(folder / "model.safetensors")
    last = config["num_hidden_layers"] - 1
    writer = gguf.GGUFWriter(path, changed.pop("architecture", "llama"))
    writer.add_block_count(changed.get("blocks", last + 1))
    writer.add_head_count(changed.get("heads", config["num_attention_heads"]))
    writer.add_head_count_kv(config["num_key_value_heads"])
    for name, key in (
        ("token_embd.weight", "model.embed_tokens.weight"),
        (f"blk.{last}.ffn_down.weight", f"model.layers.{last}.mlp.down_proj.weight"),
    ):
        values = tensors[key].float().numpy() + changed.get(name, 0.0)
        values = np.ascontiguousarray(values[:, : changed.get("width")])
        data = gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind])
        writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Two random Llamas whose rows are whole blocks; normal numbers, as those of trained models nearly are."""
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("wide")
    shape = {"vocab_size": 256, "hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2}
    config = AutoConfig.for_model("llama", **shape, num_key_value_heads=2, num_hidden_layers=1, initializer_range=0.02)
    for seed in (0, 1):
        torch.manual_seed(seed)
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder / str(seed))
    return [hub.Source(f"base-{seed}", folder / str(seed), None) for seed in (0, 1)]


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q5_0", "Q5_1", "Q4_0", "Q4_1"])
def test_a_gguf_of_the_base_passes_and_another_models_does_not(wide, tmp_path, kind):
    path = write_match(tmp_path / "base.gguf", wide[0].folder, kind)
    check_gguf_base(path, wide[0])
    with pytest.raises(
        UpdateMismatchError, match=rf"'base\.gguf' is not .* 'base-1': .* 'token_embd.weight' \({kind}\)"
    ):
        check_gguf_base(path, wide[1])


def test_a_fine_tune_is_told_from_its_base_as_far_as_rounding_allows(wide, tmp_path):
    """Of 16 bits any change counts; of 8 one above a sixtieth of the numbers' size; of 4 a quarter."""
    generator = np.random.default_rng(0)
    for name, shape in (("token_embd.weight", (256, 64)), ("blk.0.ffn_down.weight", (64, 64))):
        for kind, size in (("F16", 0.005), ("Q8_0", 0.03), ("Q4_0", 0.4)):
            noise = generator.normal(size=shape).astype(np.float32) * 0.02
            near = write_match(tmp_path / "near.gguf", wide[0].folder, kind, **{name: noise * size / 10})
            far = write_match(tmp_path / "far.gguf", wide[0].folder, kind, **{name: noise * size})
            if kind != "F16":
                check_gguf_base(near, wide[0])
            with pytest.raises(UpdateMismatchError, match=rf"the numbers of its '{name}' \({kind}\) are off by"):
                check_gguf_base(far, wide[0])


def test_numbers_that_gguf_cannot_read_are_not_compared(wide, tmp_path, monkeypatch, caplog):
    path = write_match(tmp_path / "base.gguf", wide[0].folder, "Q8_0")
    monkeypatch.setattr(gguf.quants, "_type_traits", {})
    check_gguf_base(path, wide[1])
    assert "'base.gguf' was not compared with the base model 'base-1': Dequantization for Q8_0" in caplog.text


def test_shapes_are_compared_first(wide, tmp_path):
    for changed, message in (
        ({"architecture": "qwen2"}, "its architecture is qwen2, and the base's llama"),
        ({"blocks": 3}, "its number of layers is 3, and the base's 1"),
        ({"heads": 4}, "its number of heads is 4, and the base's 2"),
        ({"width": 32}, "its width is 32, and the base's 64"),
    ):
        path = write_match(tmp_path / "other.gguf", wide[0].folder, **changed)
        with pytest.raises(UpdateMismatchError, match=message) as caught:
            check_gguf_base(path, wide[0])
        assert "leave --gguf out" in caught.value.hint


def test_of_a_base_on_the_hub_only_rows_are_read(online, pico, tmp_path, caplog):
    """Its weights are not in the cache afterwards; out of reach, it is said that nothing was compared."""
    path = write_match(tmp_path / "base.gguf", pico.base("llama"), "F32")
    api, name = online.api, "own/only-rows"
    api.create_repo(name)
    sha = api.upload_folder(repo_id=name, folder_path=pico.base("llama")).oid
    base = hub.fetch(name, [hub.CONFIG], revision=sha)
    check_gguf_base(path, base)
    assert not (base.folder / "model.safetensors").exists()
    other = write_match(tmp_path / "other.gguf", pico.base("llama"), "F32", **{"token_embd.weight": 0.01})
    with pytest.raises(UpdateMismatchError, match="own/only-rows"):
        check_gguf_base(other, base)
    online.hub.fail = lambda *_: 500
    check_gguf_base(other, base)
    assert "'other.gguf' was not compared with the base model 'own/only-rows'" in caplog.text
