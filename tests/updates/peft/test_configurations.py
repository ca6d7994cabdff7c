"""Adapter configurations of every generation of PEFT and of the tools that write them: each loads, or says why not."""

import copy
import functools
import json
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftConfig, get_peft_model
from safetensors.torch import load_file, save_file

from taia_hub import TAIAForCausalLM, errors
from tests.conftest import logits
from tests.updates.peft.test_fitting import as_of_018, by_expert

TABLE = yaml.safe_load((Path(__file__).parents[2] / "data" / "peft_configurations.yaml").read_text())
WEIGHTS = "adapter_model.safetensors"
_ANY_METHOD = {
    *("peft_type", "task_type", "inference_mode", "base_model_name_or_path", "revision", "auto_mapping", "r"),
    *("modules_to_save", "target_modules", "layers_to_transform", "layers_pattern", "exclude_modules", "peft_version"),
}


def configuration(version, values):
    """Returns what a version of PEFT writes, with a tool's values over it."""

    def number(text):
        return tuple(map(int, text.split(".")))

    written = {}
    for generation, keys in TABLE["generations"].items():
        if version != "bare" and (
            generation == version or (generation != "0.2" and number(generation) <= number(version))
        ):
            written |= keys
    if values.get("peft_type", "LORA") != "LORA":
        written = {key: value for key, value in written.items() if key in _ANY_METHOD}
    return {**written, **values}


@functools.cache
def plain(pico, name):
    return pico.plain(name)


def trained(pico, name, values, folder):
    """Saves an adapter of a configuration, whose every parameter is random, and returns the model that was trained."""
    values = {"base_model_name_or_path": None, **values, "inference_mode": False, "lora_dropout": 0.0}
    (folder / "adapter_config.json").write_text(json.dumps(values))
    model = get_peft_model(copy.deepcopy(plain(pico, name)), PeftConfig.from_pretrained(str(folder)))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.is_floating_point():
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder, save_embedding_layers=False)
    return model.eval()


def of_tensors(change):
    """Makes of a function on the tensors of a file one on its folder."""

    def done(folder):
        save_file({key: value.contiguous() for key, value in change(load_file(folder / WEIGHTS))}, folder / WEIGHTS)

    return done


def pickled(folder):
    torch.save(load_file(folder / WEIGHTS), folder / "adapter_model.bin")
    (folder / WEIGHTS).unlink()


@of_tensors
def merged_linear(tensors):
    """Two of three parts of a fused weight, each with a pair of its own, the second factor a convolution by group."""
    for key, value in tensors.items():
        a = value.repeat(2, 1)
        yield key, a if "lora_A" in key else value[: len(value) * 2 // 3, :, None]


@of_tensors
def empty(tensors):
    yield from ((key, torch.zeros(0)) for key in tensors)


@of_tensors
def compiled(tensors):
    yield from (
        (key.replace("base_model.model.", "base_model.model._orig_mod."), value) for key, value in tensors.items()
    )


@of_tensors
def score(tensors):
    yield from (*tensors.items(), ("base_model.model.score.weight", torch.zeros(1, 16)))


DONE = {
    "pickled": pickled,
    "merged_linear": merged_linear,
    "sides_of_018": lambda folder: as_of_018(folder, 4),
    "empty": empty,
    "compiled": compiled,
    "score": score,
}


@pytest.mark.filterwarnings("ignore")  # PEFT's on old keys
@pytest.mark.parametrize("row", TABLE["rows"], ids=lambda row: "-".join(row[:3]))
def test_an_adapter_of_this_configuration_loads_or_says_why_not(pico, tmp_path, row):
    _, version, _, values, expected, made = (*row, {})[:6]
    name, file = made.get("base", "llama"), made.get("file")
    written, reference = configuration(version, values), None
    if file == "by_expert":
        reference = by_expert(copy.deepcopy(plain(pico, name)), tmp_path / "lora", r=4, alpha=6)
        folder = tmp_path / "lora"
    elif file in ("nothing", "adapters_file"):
        folder = tmp_path
        save_file({"weight": torch.zeros(1)}, folder / ("adapters.safetensors" if file != "nothing" else WEIGHTS))
    else:
        folder = tmp_path
        reference = trained(pico, name, {**written, **made.get("trained", {})}, folder)
        if file:
            DONE[file](folder)
    (folder / "adapter_config.json").write_text(json.dumps(written))

    if expected != "loads":
        with pytest.raises(getattr(errors, expected[0]), match=expected[1]):
            TAIAForCausalLM.from_adapter(pico.base(name), folder)
        return
    model, ids = TAIAForCausalLM.from_adapter(pico.base(name), folder).eval(), pico.ids()

    assert torch.equal(logits(model, ids, inference_modules="none"), logits(plain(pico, name), ids))
    found, trained_gives = logits(model, ids, inference_modules="all"), logits(reference, ids)
    assert torch.equal(found, trained_gives) or (
        file == "by_expert" and torch.allclose(found, trained_gives, rtol=1e-4, atol=1e-5)
    )


def test_the_table_is_as_long_as_it_says():
    assert len(TABLE["rows"]) >= 76
    assert len({(tool, version, traits) for tool, version, traits, *_ in TABLE["rows"]}) == len(TABLE["rows"])
