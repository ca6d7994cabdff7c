"""GGUF LoRAs: names, shapes, rows, and what llama.cpp could not apply."""

import json
import shutil
import struct

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from taia_hub.engines.gguf_lora import Base, read_base, write_gguf_lora
from taia_hub.errors import ConfigError, RepositoryError, UnsupportedUpdateError, UpdateMismatchError

gguf = pytest.importorskip("gguf")

HEADS, KEY_HEADS, HEAD, HIDDEN, INNER, LAYERS = 2, 1, 8, 16, 24, 2
MATRICES = {
    "attn_q": (HEADS * HEAD, HIDDEN),
    "attn_k": (KEY_HEADS * HEAD, HIDDEN),
    "attn_v": (KEY_HEADS * HEAD, HIDDEN),
    "attn_output": (HIDDEN, HEADS * HEAD),
    "ffn_gate": (INNER, HIDDEN),
    "ffn_up": (INNER, HIDDEN),
    "ffn_down": (HIDDEN, INNER),
}


def write_base(path, architecture="llama", hidden=HIDDEN, head=False, extra=None, of=None):
    """The header of a pico model's GGUF; its weights are zeros, but for what is compared with the base `of`."""
    own = load_file(of / "model.safetensors") if of else {}
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(LAYERS)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    for key, value in (extra or {}).items():
        writer.add_uint32(key, value)
    embedding = own["model.embed_tokens.weight"].numpy() if own else np.zeros((64, hidden))
    writer.add_tensor("token_embd.weight", embedding.astype(np.float16))
    if head:
        writer.add_tensor("output.weight", np.zeros((64, hidden), np.float16))
    for layer in range(LAYERS):
        for name, (rows, columns) in MATRICES.items():
            columns = hidden if columns == HIDDEN else columns
            key = f"model.layers.{layer}.mlp.down_proj.weight"
            values = own[key].numpy() if own and name == "ffn_down" else np.zeros((rows, columns))
            writer.add_tensor(f"blk.{layer}.{name}.weight", values.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("gguf") / "base.gguf")


@pytest.fixture
def adapter(pico):
    return pico.adapter("llama")


@pytest.fixture
def edited(adapter, tmp_path):
    """Copies the adapter with other tensors or another configuration."""

    def edit(tensors=lambda tensors: tensors, **config):
        folder = tmp_path / "edited"
        shutil.copytree(adapter, folder, dirs_exist_ok=True)
        save_file(tensors(load_file(folder / "adapter_model.safetensors")), folder / "adapter_model.safetensors")
        values = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps({**values, **config}))
        return folder

    return edit


def read(path):
    reader = gguf.GGUFReader(path)
    return reader, {
        tensor.name: tensor.data.reshape([int(n) for n in reversed(tensor.shape)]) for tensor in reader.tensors
    }


def key(layer, path, factor):
    return f"base_model.model.model.layers.{layer}.{path}.lora_{factor}.weight"


def test_the_file_says_what_llama_cpp_asks_for(adapter, base, tmp_path):
    written = write_gguf_lora(adapter, base, tmp_path / "lora.gguf")
    reader, tensors = read(written.path)
    said = {
        name: reader.get_field(name).contents() for name in ("general.type", "adapter.type", "general.architecture")
    }
    assert said == {"general.type": "adapter", "adapter.type": "lora", "general.architecture": "llama"}
    assert reader.get_field("adapter.lora.alpha").contents() == 6  # r 4, scale 6 / 4
    assert (written.modules, written.rank) == (LAYERS * len(MATRICES), 4)
    assert written.size == written.path.stat().st_size
    names = {f"blk.{layer}.{name}.weight.lora_{one}" for layer in range(LAYERS) for name in MATRICES for one in "ab"}
    assert set(tensors) == names
    assert [path.name for path in tmp_path.iterdir()] == ["lora.gguf"]


def test_only_the_rows_of_queries_and_keys_change_places(adapter, base, tmp_path):
    source = load_file(adapter / "adapter_model.safetensors")
    _, tensors = read(write_gguf_lora(adapter, base, tmp_path / "lora.gguf").path)
    # head by head: row i of the first half, then row i of the second half
    half = HEAD // 2
    for name, path, heads in (("attn_q", "q_proj", HEADS), ("attn_k", "k_proj", KEY_HEADS)):
        order = [head * HEAD + place * half + i for head in range(heads) for i in range(half) for place in (0, 1)]
        rows = source[key(1, f"self_attn.{path}", "B")][order]
        assert np.array_equal(tensors[f"blk.1.{name}.weight.lora_b"], rows.numpy())
        assert np.array_equal(tensors[f"blk.1.{name}.weight.lora_a"], source[key(1, f"self_attn.{path}", "A")].numpy())
    for name, path in (("attn_v", "self_attn.v_proj"), ("attn_output", "self_attn.o_proj"), ("ffn_up", "mlp.up_proj")):
        assert np.array_equal(tensors[f"blk.0.{name}.weight.lora_b"], source[key(0, path, "B")].numpy())


def test_pairs_that_add_nothing_are_left_out(edited, base, tmp_path):
    def idle(tensors, end):
        return {name: one * (not name.endswith(end)) for name, one in tensors.items()}

    written = write_gguf_lora(edited(lambda all_: idle(all_, "1.mlp.up_proj.lora_B.weight")), base, tmp_path / "a.gguf")
    assert written.modules == LAYERS * len(MATRICES) - 1
    assert not [name for name in read(written.path)[1] if name.startswith("blk.1.ffn_up")]
    with pytest.raises(UnsupportedUpdateError, match="holds no tensor"):
        write_gguf_lora(edited(lambda all_: idle(all_, "lora_B.weight")), base, tmp_path / "b.gguf")


def test_other_architectures_keep_their_rows(adapter, tmp_path):
    base = write_base(tmp_path / "base.gguf", "qwen2")
    source = load_file(adapter / "adapter_model.safetensors")
    _, tensors = read(write_gguf_lora(adapter, base, tmp_path / "lora.gguf").path)
    assert np.array_equal(tensors["blk.1.attn_q.weight.lora_b"], source[key(1, "self_attn.q_proj", "B")].numpy())


def test_sixteen_bits(adapter, base, edited, tmp_path):
    half = edited(lambda tensors: {name: one.to(torch.bfloat16) for name, one in tensors.items()})
    written = write_gguf_lora(half, base, tmp_path / "lora.gguf", dtype="float16")
    _, tensors = read(written.path)
    expected = load_file(half / "adapter_model.safetensors")[key(0, "mlp.down_proj", "A")].to(torch.float16)
    assert np.array_equal(tensors["blk.0.ffn_down.weight.lora_a"], expected.numpy())
    with pytest.raises(ConfigError, match=r"Did you mean 'float16'"):
        write_gguf_lora(half, base, tmp_path / "lora.gguf", dtype="bfloat16")


def test_rank_stabilised_scale(base, edited, tmp_path):
    written = write_gguf_lora(edited(use_rslora=True), base, tmp_path / "lora.gguf")
    assert read(written.path)[0].get_field("adapter.lora.alpha").contents() == 6 / 4**0.5 * 4


def test_the_base_is_read_once_for_several(adapter, base, tmp_path):
    header = read_base(base)
    assert isinstance(header, Base)
    assert (header.heads, header.key_heads, header.blocks) == (HEADS, KEY_HEADS, LAYERS)
    one = write_gguf_lora(adapter, header, tmp_path / "one.gguf").path.read_bytes()
    assert one == write_gguf_lora(adapter, base, tmp_path / "two.gguf").path.read_bytes()


@pytest.mark.parametrize(
    "config",
    [
        {"use_dora": True},
        {"bias": "lora_only"},
        {"lora_bias": True},
        {"modules_to_save": ["lm_head"]},
        {"rank_pattern": {"q_proj": 8}},
        {"alpha_pattern": {"q_proj": 8}},
        {"peft_type": "IA3"},
    ],
)
def test_what_llama_cpp_ignores_is_refused(base, edited, tmp_path, config):
    with pytest.raises(UnsupportedUpdateError, match=r"which llama\.cpp does not") as caught:
        write_gguf_lora(edited(**config), base, tmp_path / "lora.gguf")
    assert "taia export" in caught.value.hint
    assert not (tmp_path / "lora.gguf").exists()


def test_another_base_is_refused(adapter, tmp_path):
    base = write_base(tmp_path / "base.gguf", hidden=32)
    with pytest.raises(UpdateMismatchError, match=r"has shape \(4, 16\), but 'blk.0.*is \(\d+, 32\)"):
        write_gguf_lora(adapter, base, tmp_path / "lora.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["base.gguf"]


def test_a_tied_head_is_refused_and_an_own_one_is_written(base, edited, tmp_path):
    def with_head(tensors):
        head = {"A": torch.ones(4, HIDDEN), "B": torch.ones(64, 4)}
        return {**tensors, **{f"base_model.model.lm_head.lora_{one}.weight": head[one] for one in "AB"}}

    adapter = edited(with_head)
    with pytest.raises(UpdateMismatchError, match="ties its head"):
        write_gguf_lora(adapter, base, tmp_path / "lora.gguf")
    own = write_base(tmp_path / "own.gguf", head=True)
    assert "output.weight.lora_b" in read(write_gguf_lora(adapter, own, tmp_path / "lora.gguf").path)[1]


def test_embeddings_are_refused(base, edited, tmp_path):
    embedding = edited(lambda one: {**one, "base_model.model.model.embed_tokens.lora_embedding_A": torch.ones(4, 64)})
    with pytest.raises(UnsupportedUpdateError, match="lora_embedding_A"):
        write_gguf_lora(embedding, base, tmp_path / "lora.gguf")


def test_half_a_pair_and_several_ranks_are_refused(base, edited, tmp_path):
    name = key(0, "mlp.up_proj", "A")
    single = edited(lambda tensors: {other: value for other, value in tensors.items() if other != name})
    with pytest.raises(UpdateMismatchError, match=r"blk.0.ffn_up.weight"):
        write_gguf_lora(single, base, tmp_path / "lora.gguf")

    def wider(tensors):
        tensors[name] = torch.ones(8, HIDDEN)
        tensors[name.replace("lora_A", "lora_B")] = torch.ones(INNER, 8)
        return tensors

    with pytest.raises(UnsupportedUpdateError, match=r"ranks \[4, 8\]"):
        write_gguf_lora(edited(wider), base, tmp_path / "lora.gguf")


def test_unknown_architectures_name_llama_cpps_own_converter(adapter, tmp_path):
    base = write_base(tmp_path / "base.gguf", "falcon")
    with pytest.raises(UnsupportedUpdateError, match=r"'falcon'.*known are llama") as caught:
        write_gguf_lora(adapter, base, tmp_path / "lora.gguf")
    assert "convert_lora_to_gguf.py" in caught.value.hint


def test_files_that_are_no_base(adapter, base, tmp_path):
    with pytest.raises(RepositoryError, match="There is no GGUF") as caught:
        read_base(tmp_path / "missing.gguf")
    assert "convert_hf_to_gguf.py" in caught.value.hint
    (tmp_path / "text.gguf").write_text("no model")
    with pytest.raises(RepositoryError, match="is no GGUF file"):
        read_base(tmp_path / "text.gguf")
    (tmp_path / "half.gguf").write_bytes(base.read_bytes()[:-2000])
    with pytest.raises(RepositoryError, match="truncated"):
        read_base(tmp_path / "half.gguf")
    with pytest.raises(RepositoryError, match="one part of several"):
        read_base(write_base(tmp_path / "part.gguf", extra={"split.count": 2}))


def test_a_foreign_header_is_refused_whatever_it_says(tmp_path, monkeypatch):
    """Numbers where texts belong, lists, a name twice, lists in lists without end."""
    path, nested = tmp_path / "odd.gguf", (9, 1) * 3000
    head = struct.pack("<4sIQQ", b"GGUF", 3, 0, 1)
    for name, kind, value in (
        ("general.architecture", 4, struct.pack("<I", 7)),
        ("general.architecture", 9, struct.pack("<IQI", 4, 1, 7)),
        ("split.count", 8, struct.pack("<Q3s", 3, b"two")),
        ("general.architecture", 8, struct.pack("<Q2s", 2, b"\xff\xfe")),
        ("GGUF.version", 4, struct.pack("<I", 3)),
        ("any", 9, struct.pack("<" + "IQ" * 3000, *nested)),
    ):
        path.write_bytes(head + struct.pack(f"<Q{len(name)}sI", len(name), name.encode(), kind) + value)
        with pytest.raises((RepositoryError, UnsupportedUpdateError)):
            read_base(path)
    monkeypatch.setattr(
        gguf.GGUFWriter, "add_block_count", lambda writer, _: writer.add_string("llama.block_count", "2")
    )
    with pytest.raises(UnsupportedUpdateError):
        read_base(write_base(path))


def test_what_was_there_stays_when_writing_fails(adapter, base, tmp_path, monkeypatch):
    out = tmp_path / "lora.gguf"
    out.write_text("the old one")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", fail)
    with pytest.raises(RepositoryError, match="no space is left"):
        write_gguf_lora(adapter, base, out)
    assert out.read_text() == "the old one"
    assert [path.name for path in tmp_path.iterdir()] == ["lora.gguf"]
