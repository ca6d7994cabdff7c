"""What is broken, foreign or another kind of thing is said in this package's own words, whatever is called with it.

Each damage of each file goes through some of the doors, in turn; `TAIA_TEST_DOORS=100` walks through all of them.
"""

import itertools
import json
import os
import shutil
import struct
import traceback
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save, save_file

from taia_hub import TAIAForCausalLM, TAIAModel
from taia_hub.errors import TAIAError
from tests.evaluation.conftest import _environment, _task_files  # noqa: F401 - lm-eval's index is read once

EACH = int(os.environ.get("TAIA_TEST_DOORS", "1"))


# --- Damages of one file -------------------------------------------------------------------------------------------
def content(data):
    return lambda path: path.write_bytes(data)


def instead(make):
    return lambda path: (path.unlink(), make(path))


def tensors(change):
    return lambda path: save_file({name: change(one) for name, one in load_file(path).items()}, path)


FILES = {
    "missing": Path.unlink,
    "empty": content(b""),
    "a folder": instead(Path.mkdir),
    "a pipe": instead(os.mkfifo),
    "a device": instead(lambda path: path.symlink_to("/dev/zero")),
    "a link to itself": instead(lambda path: path.symlink_to(path.name)),
    "a git-lfs pointer": content(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1049\n"),
    "a web page": content(b"<!DOCTYPE html><html><body>Sign in</body></html>"),
    "a zip": content(b"PK\x03\x04" + bytes(60)),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-5]),
}
JSONS = {
    "no JSON": content(b"{'r': 4}"),
    "not UTF-8": content(b'{"r": "\xff\xfe"}'),
    "UTF-16": content('{"r": 4}'.encode("utf-16")),
    "deep": content(b'{"a":' + b"[" * 100_000),
    "a list": content(b"[1, 2]"),
    "null": content(b"null"),
    "an empty object": content(b"{}"),
    "half a letter": content(b'{"model_type": "\\ud800", "peft_type": "\\ud800", "weight_map": {"\\ud800": "x"}}'),
}
TENSORS = {
    "header too long": content(struct.pack("<Q", 1 << 60) + b"{}"),
    "header no JSON": content(struct.pack("<Q", 4) + b"nope"),
    "no tensors": content(save({})),
    "of another name": content(save({"x": torch.zeros(2)})),
    "whole numbers": tensors(torch.Tensor.long),
    "8-bit": tensors(lambda one: one.to(torch.float8_e4m3fn)),
    "empty tensors": tensors(lambda one: one.new_zeros(0)),
    "cut shapes": tensors(lambda one: one[:1].clone()),
    "NaN": tensors(lambda one: one * float("nan")),
}
BROKEN = [
    ("base", "config.json", JSONS),
    ("base", "model.safetensors", TENSORS),
    ("base", "generation_config.json", JSONS),
    ("base", "tokenizer_config.json", JSONS),
    ("base", "tokenizer.json", JSONS),
    ("adapter", "adapter_config.json", JSONS),
    ("adapter", "adapter_model.safetensors", TENSORS),
    ("taia", "config.json", JSONS),
    ("taia", "taia_manifest.json", JSONS),
    ("taia", "generation_config.json", JSONS),
    ("taia", "adapter/adapter_config.json", JSONS),
    ("taia", "adapter/adapter_model.safetensors", TENSORS),
    ("taia", "README.md", {"broken YAML": content(b"---\ntags: [\n---\n"), "no YAML": content(b"---\n- 1\n---\n")}),
]


# --- What may be called with it ------------------------------------------------------------------------------------
def base_doors(base, good):
    few = ("--max-new-tokens", "1")
    return {
        "from_adapter": lambda: TAIAForCausalLM.from_adapter(base, good / "adapter"),
        "create": ("create", base, good / "adapter", "--out", "out"),
        "dense": ("create", base, good / "base", "--dense", "--out", "out"),
        "export": ("export", good / "adapter", "--base", base, "--out", "out"),
        "merge": ("merge", good / "adapter", "--base", base, "--out", "out"),
        "from_finetuned": lambda: TAIAForCausalLM.from_finetuned(good / "base", base),
        "analyze": ("analyze", good / "adapter", "--base", base, "--relative"),
        "compare": ("compare", base, good / "base", "hi", *few),
        "TAIAModel": lambda: TAIAModel.from_adapter(base, good / "adapter"),
        "train": ("train", "--base", base, "--data", good / "rows.jsonl", "--out", "out", "--dry-run"),
    }


def update_doors(folder, good):
    few = ("--max-new-tokens", "1")
    return {
        "from_pretrained": lambda: TAIAForCausalLM.from_pretrained(folder),
        "create": ("create", good / "base", folder, "--out", "out"),
        "info": ("info", folder),
        "export": ("export", folder, "--out", "out"),
        "merge": ("merge", folder, "--out", "out"),
        "push": ("push", folder, "org/x"),
        "card": ("card", folder),
        "check": ("check", folder),
        "serve": ("serve", folder, "--print"),
        "unverified": lambda: TAIAForCausalLM.from_pretrained(folder, verify=False),
        "generate": ("generate", folder, "hi", *few),
        "compare": ("compare", folder, "hi", *few),
        "analyze": ("analyze", folder),
        "space": ("space", "create", folder, "org/space"),
        "from_adapter": lambda: TAIAForCausalLM.from_adapter(good / "base", folder),
        "pickle": ("create", good / "base", folder, "--out", "out", "--convert-pickle"),
        "TAIAModel": lambda: TAIAModel.from_pretrained(folder),
        "eval": ("eval", folder, "--task", "none.jsonl"),
    }


@pytest.fixture(scope="module")
def good(pico, tokenizer, tmp_path_factory):
    """Folders of a base, an adapter and a TAIA repository that are whole."""
    folder = tmp_path_factory.mktemp("good")
    shutil.copytree(pico.base("llama"), folder / "base")
    tokenizer.save_pretrained(folder / "base")
    shutil.copytree(pico.adapter("llama"), folder / "adapter")
    config = json.loads((folder / "adapter/adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(folder / "base")
    (folder / "adapter/adapter_config.json").write_text(json.dumps(config))
    TAIAForCausalLM.from_adapter(folder / "base", folder / "adapter").save_pretrained(folder / "taia")
    (folder / "rows.jsonl").write_text('{"prompt": "the", "completion": "the end"}\n')
    return folder


@pytest.fixture
def said_by(taia, monkeypatch, tmp_path):
    """Calls a door; returns what it says where it refuses, None where it does not, and fails where it is not ours."""
    monkeypatch.chdir(tmp_path)

    def call(door):
        shutil.rmtree("out", ignore_errors=True)
        if isinstance(door, tuple):
            status, _, err = taia(*door)
            said = err.partition("Error: ")[2]
            assert status in (0, 1, 2), status
            assert bool(status) == bool(said) or door[0] == "check", err[-500:]  # its finding is a status too
            assert "Traceback" not in err, err[-2000:]
            assert not said or "--debug for the traceback" not in said, said
            return said or None
        try:
            door()
        except TAIAError as error:
            said = error
        else:
            return None
        assert said.hint, said
        return str(said)

    return call


def walked(calls, said_by):
    """Returns one line for each call that ends in something else than a result or this package's own error."""
    found = []
    for label, door in calls:
        try:
            said = said_by(door)
            if said and len(said) > 1_500:
                found.append(f"{label}: {len(said)} characters: {said[:200]}")
        except Exception as error:  # noqa: BLE001 - whatever it is
            lines = [one for one in traceback.extract_tb(error.__traceback__) if "/taia_hub/" in one.filename]
            where = ", ".join(f"{Path(one.filename).name}:{one.lineno}" for one in lines[-3:])
            found.append(f"{label}: {type(error).__name__}: {str(error)[:300]} ({where})")
    return found


@pytest.mark.parametrize(("kind", "file", "more"), BROKEN, ids=lambda value: value if isinstance(value, str) else "")
def test_a_broken_file_is_said_in_our_words(kind, file, more, good, said_by, tmp_path):
    calls = []
    doors = {}
    turns = itertools.count(len(file))
    for number, (damage, damaging) in enumerate({**FILES, **more}.items()):
        folder = tmp_path / str(number)
        shutil.copytree(good / kind, folder)
        damaging(folder / file)
        doors = base_doors(folder, good) if kind == "base" else update_doors(folder, good)
        names = list(doors)
        for _ in range(min(EACH, len(names))):
            name = names[next(turns) % len(names)]
            calls.append((f"{damage} through {name}", doors[name]))
    found = walked(calls, said_by)
    assert not found, "\n".join(["", *found])


VALUES = (None, -1, "nonsense", [], {"a": 1}, True, 1e308)


@pytest.mark.parametrize(("kind", "file"), [("base", "config.json"), ("adapter", "adapter_config.json")])
def test_a_value_of_the_wrong_type_is_said_in_our_words(kind, file, good, said_by, tmp_path):
    values = json.loads((good / kind / file).read_text())
    values |= {"auto_map": None, "attn_implementation": None, "experts_implementation": None, "peft_version": None}
    shutil.copytree(good / kind, folder := tmp_path / "it")
    base, adapter = (folder, good / "adapter") if kind == "base" else (good / "base", folder)

    def load(key, value):
        (folder / file).write_text(json.dumps({**values, key: value}))
        TAIAForCausalLM.from_adapter(base, adapter)

    turns = itertools.cycle(VALUES)
    calls = [
        (f"{key}={value!r}", lambda key=key, value=value: load(key, value))
        for key in values
        for value in itertools.islice(turns, min(EACH, len(VALUES)))
        if (key, value) != ("vocab_size", 1e308)
    ]
    assert not (found := walked(calls, said_by)), "\n".join(["", *found])


# --- Things of another kind ----------------------------------------------------------------------------------------
def a_folder(**files):
    def make(folder, good):
        folder.mkdir()
        for name, data in files.items():
            (folder / name.replace("__", ".")).write_bytes(data)
        return folder

    return make


def a_file(name, data):
    def make(folder, good):
        folder.mkdir()
        (folder / name).write_bytes(data)
        return folder / name

    return make


def with_tensors(**named):
    def make(folder, good):
        shutil.copytree(good / "adapter", folder)
        made = {name.replace("__", "."): torch.ones(4, 4) for name in named}
        save_file(made, folder / "adapter_model.safetensors")
        return folder

    return make


def with_config(replace=False, **values):
    def make(folder, good):
        shutil.copytree(good / "adapter", folder)
        before = {} if replace else json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps({**before, **values}))
        return folder

    return make


OTHERS = {
    "nothing": ("both", a_folder(), "empty"),
    "GGUF": ("both", a_folder(model__gguf=b"GGUF"), "a model in GGUF"),
    "GGUF file": ("both", a_file("model.gguf", b"GGUF" + bytes(40)), "is a GGUF file"),
    "zip": ("both", a_file("model.zip", b"PK\x03\x04" + bytes(40)), "a zip archive"),
    "archive": ("both", a_folder(**{"model__tar__gz": b"x"}), "an archive"),
    "data set": ("both", a_folder(train__parquet=b"PAR1"), "a data set"),
    "diffusers": ("both", a_folder(model_index__json=b"{}"), "a pipeline of diffusers"),
    "diffusers LoRA": ("both", a_folder(pytorch_lora_weights__safetensors=b""), "a LoRA of diffusers"),
    "mlx-lm": ("both", a_folder(adapters__safetensors=b""), "an adapter of mlx-lm"),
    "LitGPT": ("base", a_folder(**{"lit_model__pth": b""}), "a checkpoint of LitGPT"),
    "adapter as base": ("base", lambda folder, good: good / "adapter", "a PEFT adapter"),
    "TAIA as base": ("base", lambda folder, good: good / "taia", "itself a TAIA repository"),
    "TAIA as adapter": ("adapter", lambda folder, good: good / "taia", "a TAIA repository already"),
    "mlx-lm config": ("adapter", with_config(True, fine_tune_type="lora", num_layers=8), "made by mlx-lm"),
    "AdapterHub": ("adapter", with_config(True, config={}, model_name="bert"), "AdapterHub"),
    "classifier": ("adapter", with_config(task_type="SEQ_CLS"), r"SEQ_CLS (a classification head)"),
    "token classifier": ("adapter", with_config(task_type="TOKEN_CLS"), "TOKEN_CLS (a classification head)"),
    "seq2seq": ("adapter", with_config(task_type="SEQ_2_SEQ_LM"), "SEQ_2_SEQ_LM (an encoder-decoder)"),
    "kohya": ("adapter", with_tensors(lora_unet_down__hada_w1_a=1), "named as kohya-ss names them"),
    "mlx names": ("adapter", with_tensors(model__layers__0__lora_a=1), "named as mlx-lm names them"),
    "image LoRA": ("adapter", with_tensors(unet__to_q__lora_A__weight=1), "an image model's LoRA"),
    "merged": ("adapter", with_tensors(model__embed_tokens__weight=1), "a whole model's"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_thing_of_another_kind_is_named(name, good, said_by, tmp_path):
    place, make, expected = OTHERS[name]
    it = make(tmp_path / "it", good)
    if place != "adapter":
        for door in ("from_adapter", "create", "compare"):
            if (name, door) != ("TAIA as base", "compare") and (name, door) != ("adapter as base", "compare"):
                said = said_by(base_doors(it, good)[door])
                assert expected in (said or "") or door == "compare", f"{door}: {said}"
    if place != "base":
        for door in ("from_adapter", "create"):
            said = said_by(update_doors(it, good)[door])
            assert expected in (said or ""), f"{door}: {said}"
