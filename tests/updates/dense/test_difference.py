"""Two checkpoints on the disk: what is compared, stored and refused, and what it takes of memory."""

import errno
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from taia_hub import hub
from taia_hub.errors import RepositoryError, UnsupportedUpdateError, UpdateMismatchError
from taia_hub.updates.dense.difference import write_dense
from taia_hub.weights import shards as dense_files
from taia_hub.weights.checkpoint import open_checkpoint, read_header
from taia_hub.weights.shards import same_values
from tests.conftest import in_a_copy, peak_memory


@pytest.fixture
def pair(pico, tmp_path):
    """A copy of a base model and of a fine-tune whose attention and norms alone were tuned."""
    shutil.copytree(pico.base("llama"), tmp_path / "base")
    model = pico.plain("llama")
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "self_attn" in name or "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(tmp_path / "tuned")
    return tmp_path / "base", tmp_path / "tuned"


def edit(folder: Path, change):
    """Rewrites the weights of a checkpoint in one file."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def configure(folder: Path, **values):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


def stored(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a dense update, by the index."""
    index = json.loads((folder / "dense.safetensors.index.json").read_text())
    tensors = {}
    for name, file in index["weight_map"].items():
        with safe_open(folder / file, framework="pt") as shard:
            tensors[name] = shard.get_tensor(name)
    return tensors


def test_only_what_differs_is_stored_exactly(pair, tmp_path):
    report = write_dense(*pair, tmp_path / "dense")
    tuned = load_file(pair[1] / "model.safetensors")
    expected = {name for name in tuned if "self_attn" in name or "norm" in name}
    found = stored(tmp_path / "dense")
    assert found.keys() == expected
    assert all(torch.equal(found[name], tuned[name]) for name in expected)
    assert report.roles["attention"].changed.tensors == 8
    assert report.roles["attention"].unchanged.tensors == 0
    assert report.roles["ffn"].changed.tensors == 0
    assert report.roles["ffn"].unchanged.tensors == 6
    assert report.changed.parameters == sum(tensor.numel() for tensor in found.values())
    assert report.changed.bytes == 4 * report.changed.parameters
    assert report.notes == ()
    assert sorted(path.name for path in (tmp_path / "dense").iterdir()) == [
        "dense-00001-of-00001.safetensors",
        "dense.safetensors.index.json",
        "dense_config.json",
    ]


def test_shards_keep_to_their_size_and_are_hashed(pair, tmp_path):
    report = write_dense(*pair, tmp_path / "dense", shard_bytes=1500)
    assert len(report.shards) > 3
    index = json.loads((tmp_path / "dense" / "dense.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(report.shards) == set(index["metadata"]["sha256"])
    for name in report.shards:
        header = read_header(tmp_path / "dense" / name)
        assert len(header) == 1 or sum(one.size for one in header.values()) <= 1500
        assert index["metadata"]["sha256"][name] == hub.sha256(tmp_path / "dense" / name)
    tuned = load_file(pair[1] / "model.safetensors")
    assert all(torch.equal(tensor, tuned[name]) for name, tensor in stored(tmp_path / "dense").items())


def test_a_sharded_checkpoint_equals_a_single_file(pair, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(pair[1])
    model.save_pretrained(tmp_path / "sharded", max_shard_size="5KB")
    assert (tmp_path / "sharded" / "model.safetensors.index.json").is_file()
    write_dense(*pair, tmp_path / "one")
    write_dense(pair[0], tmp_path / "sharded", tmp_path / "other")
    one, other = stored(tmp_path / "one"), stored(tmp_path / "other")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (torch.tensor([1.0, float("nan")]), torch.tensor([1.0, float("nan")]), True),
        (torch.tensor([0.0]), torch.tensor([-0.0]), False),
        (torch.tensor([1.5]), torch.tensor([1.5]).bfloat16(), True),
        (torch.tensor([1.1]), torch.tensor([1.1]).bfloat16(), False),
        (torch.tensor([1.5]).half(), torch.tensor([1.5]).bfloat16(), True),
        (torch.zeros(2, 3), torch.zeros(3, 2), False),
        (torch.tensor([1, 2, 3], dtype=torch.int8), torch.tensor([1, 2, 3], dtype=torch.int8), True),
        (torch.empty(0, 4), torch.empty(0, 4), True),
    ],
)
def test_what_counts_as_the_same(tmp_path, one, other, same):
    for name, tensor in (("one", one), ("other", other)):
        save_file({"x": tensor}, tmp_path / name)
    assert same_values(read_header(tmp_path / "one")["x"], read_header(tmp_path / "other")["x"]) is same


@pytest.mark.parametrize("place", [0, 2_500_000, -1])
def test_a_difference_in_any_piece_is_seen(tmp_path, place):
    tensor = torch.zeros(5_000_011, dtype=torch.bfloat16)
    save_file({"x": tensor}, tmp_path / "one")
    tensor[place] = 1
    save_file({"x": tensor}, tmp_path / "other")
    save_file({"x": tensor.float()}, tmp_path / "wide")
    headers = [read_header(tmp_path / name)["x"] for name in ("one", "other", "wide")]
    assert not same_values(headers[0], headers[1])
    assert not same_values(headers[0], headers[2])
    assert same_values(headers[1], headers[2])


def test_another_dtype_is_compared_by_value_and_reported(pair, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(pair[0], dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "rounded")
    model.float().save_pretrained(tmp_path / "widened")
    with pytest.raises(UpdateMismatchError, match="nothing was tuned"):
        write_dense(tmp_path / "rounded", tmp_path / "widened", tmp_path / "dense")
    report = write_dense(tmp_path / "rounded", pair[1], tmp_path / "dense")
    assert any("BF16 and the fine-tune in F32" in note for note in report.notes)
    assert all(tensor.dtype == torch.float32 for tensor in stored(tmp_path / "dense").values())


def test_the_same_checkpoint_is_refused(pair, tmp_path):
    with pytest.raises(UpdateMismatchError, match="nothing was tuned"):
        write_dense(pair[0], pair[0], tmp_path / "dense")
    assert not (tmp_path / "dense").exists()


def test_models_of_two_families_are_refused(pair, pico, tmp_path):
    with pytest.raises(UpdateMismatchError, match=r"LlamaForCausalLM \(llama\) and the fine-tune a Qwen3ForCausalLM"):
        write_dense(pair[0], pico.base("qwen3"), tmp_path / "dense")
    with pytest.raises(UpdateMismatchError, match=r"model\.layers\.1.*not of one family"):
        write_dense(pair[0], pico.base("llama-single"), tmp_path / "dense")
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(pair[0], intermediate_size=32)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "wider")
    with pytest.raises(UpdateMismatchError, match=r"shape \(24, 16\) in the base model and \(32, 16\)"):
        write_dense(pair[0], tmp_path / "wider", tmp_path / "dense")
    assert not (tmp_path / "dense").exists()


def test_another_computation_is_refused_and_harmless_fields_are_not(pair, tmp_path):
    configure(pair[1], use_cache=False, eos_token_id=5, attention_dropout=0.1, made_by="a trainer", pad_token_id=None)
    write_dense(*pair, tmp_path / "dense")
    configure(pair[1], rms_norm_eps=0.1)
    with pytest.raises(UpdateMismatchError, match=r"rms_norm_eps is 1e-06 and 0\.1"):
        write_dense(*pair, tmp_path / "other")


def test_other_names_are_recognised_and_reported(pico, tmp_path):
    shutil.copytree(pico.base("gpt2"), tmp_path / "tuned")

    def change(tensors):
        for name in list(tensors):  # as the first checkpoints of GPT-2 are
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        tensors["h.0.attn.c_attn.weight"] += 1
        tensors["h.0.attn.bias"] = torch.ones(1, 1, 128, 128)  # a mask that transformers ignores

    edit(tmp_path / "tuned", change)
    report = write_dense(pico.base("gpt2"), tmp_path / "tuned", tmp_path / "dense")
    assert stored(tmp_path / "dense").keys() == {"h.0.attn.c_attn.weight"}
    assert any("other names" in note for note in report.notes)
    assert any("'h.0.attn.bias'" in note and "left out" in note for note in report.notes)


def test_experts_are_kept_together(pico, tmp_path):
    shutil.copytree(pico.base("qwen3_moe"), tmp_path / "tuned")
    one = "model.layers.1.mlp.experts.3.up_proj.weight"
    edit(tmp_path / "tuned", lambda tensors: tensors[one].add_(1))
    report = write_dense(pico.base("qwen3_moe"), tmp_path / "tuned", tmp_path / "dense")
    found = stored(tmp_path / "dense")
    parts = [f"{number}.{part}_proj" for number in range(4) for part in ("gate", "up")]
    assert found.keys() == {f"model.layers.1.mlp.experts.{part}.weight" for part in parts}
    assert report.roles["ffn"].changed.tensors == 8


def test_ten_and_more_experts_are_joined_in_the_order_of_their_numbers(pico, tmp_path):
    config = AutoConfig.from_pretrained(pico.base("qwen3_moe"), num_experts=12)
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path / "model")
    checkpoint = open_checkpoint(tmp_path / "model", what="model")
    name = "model.layers.0.mlp.experts.down_proj"
    group = checkpoint.groups[name]
    made = group.convert(checkpoint.model, [stored.read() for stored, _ in group.sources])
    assert torch.equal(made[name], model.get_parameter(name))


def test_missing_tensors_are_named(pair, tmp_path):
    edit(pair[1], lambda tensors: tensors.pop("model.norm.weight"))
    with pytest.raises(UpdateMismatchError, match=r"lacks 1 of the model's 21 tensors, first 'model\.norm\.weight'"):
        write_dense(*pair, tmp_path / "dense")


def test_a_truncated_or_missing_file_is_an_error(pair, tmp_path):
    AutoModelForCausalLM.from_pretrained(pair[1]).save_pretrained(tmp_path / "sharded", max_shard_size="5KB")
    shard = next((tmp_path / "sharded").glob("model-00002-*.safetensors"))
    content = shard.read_bytes()
    shard.write_bytes(content[:-10])
    with pytest.raises(RepositoryError, match=r"model-00002.*truncated"):
        write_dense(pair[0], tmp_path / "sharded", tmp_path / "dense")
    shard.unlink()
    with pytest.raises(RepositoryError, match=r"has no 'model-00002.*index\.json names"):
        write_dense(pair[0], tmp_path / "sharded", tmp_path / "dense")
    (pair[1] / "model.safetensors").write_bytes(b"")
    with pytest.raises(RepositoryError, match="truncated"):
        write_dense(*pair, tmp_path / "dense")
    assert not (tmp_path / "dense").exists()


def test_a_file_that_shrinks_while_it_is_read_is_an_error(pair, tmp_path, monkeypatch):
    real = dense_files._write

    def shrink(*arguments):
        path = pair[1] / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-100])
        return real(*arguments)

    monkeypatch.setattr(dense_files, "_write", shrink)
    with pytest.raises(RepositoryError, match="ended in the middle of"):
        write_dense(*pair, tmp_path / "dense")
    assert not (tmp_path / "dense").exists()


def test_a_full_disk_leaves_nothing(pair, tmp_path, monkeypatch):
    def full(file, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(dense_files, "_write_all", full)
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(RepositoryError, match="no space is left"):
        write_dense(*pair, tmp_path / "dense")
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_nothing_is_written_over_another_update(pair, tmp_path):
    write_dense(*pair, tmp_path / "dense")
    with pytest.raises(RepositoryError, match="holds a full fine-tune already"):
        write_dense(*pair, tmp_path / "dense")


def test_pickles_adapters_and_quantised_weights_are_refused(pair, pico, tmp_path):
    for name, files in (("pickled", ["pytorch_model.bin"]), ("empty", []), ("adapter", ["adapter_config.json"])):
        folder = tmp_path / name
        folder.mkdir()
        shutil.copy(pair[0] / "config.json", folder)
        for file in files:
            (folder / file).write_bytes(b"{}")
    with pytest.raises(RepositoryError, match=r"(?s)pickled weights.*save_pretrained"):
        write_dense(pair[0], tmp_path / "pickled", tmp_path / "dense")
    with pytest.raises(RepositoryError, match=r"has no model\.safetensors"):
        write_dense(pair[0], tmp_path / "empty", tmp_path / "dense")
    with pytest.raises(RepositoryError, match=r"(?s)is an adapter.*without --dense"):
        write_dense(pair[0], tmp_path / "adapter", tmp_path / "dense")
    configure(pair[1], quantization_config={"quant_method": "bitsandbytes"})
    with pytest.raises(UnsupportedUpdateError, match="are quantised"):
        write_dense(*pair, tmp_path / "dense")


def test_a_tensor_of_the_wrong_shape_is_named(pair, tmp_path):
    edit(pair[1], lambda tensors: tensors.update({"model.norm.weight": torch.ones(8)}))
    with pytest.raises(UpdateMismatchError, match=r"'model\.norm\.weight' with shape \(8,\).*says\s\(16,\)"):
        write_dense(*pair, tmp_path / "dense")


def _memory_of_a_difference(one, other, out):
    one, other = (read_header(path) for path in (one, other))
    before = peak_memory()
    changed = [other[name] for name in other if not same_values(one[name], other[name])]
    dense_files.write_shards(out, changed, stem="dense")
    assert len(changed) == 1
    return peak_memory() - before


def test_memory_does_not_grow_with_the_tensors(tmp_path):
    tensors = {name: torch.zeros(25_000_000) for name in ("a", "b")}  # 200 MB a file
    save_file(tensors, tmp_path / "one")
    tensors["b"][-1] = 1
    save_file(tensors, tmp_path / "other")
    (tmp_path / "out").mkdir()
    del tensors  # a copy of this process would have their memory to use again
    assert in_a_copy(_memory_of_a_difference, *(tmp_path / name for name in ("one", "other", "out"))) < 60e6
    assert math.isclose((tmp_path / "out" / "dense-00001-of-00001.safetensors").stat().st_size, 1e8, rel_tol=0.01)


def test_small_pieces_hold_every_value_in_another_dtype():
    tensor = torch.randn(3, 70001)
    pieces = list(dense_files.sliced(tensor, torch.bfloat16, "one"))
    assert len(pieces) == 4
    assert torch.equal(torch.cat(pieces).view(torch.bfloat16).view(3, -1), tensor.bfloat16())
    assert all(
        torch.equal(one, two)
        for one, two in zip(
            dense_files.sliced(tensor, tensor.dtype, "one"),
            tensor.view(-1).view(torch.uint8).split(1 << 18),
            strict=True,
        )
    )
