"""The structure of a model without weights: what it has, and what cannot be built."""

import pytest

from taia_hub import hub
from taia_hub.errors import ConfigError, UnsupportedUpdateError
from taia_hub.weights.skeleton import skeleton


def build(folder, **options):
    return skeleton(hub.Source(str(folder), folder, None), hub.HubAccess(), **options)


def test_it_has_the_names_and_shapes_of_the_model_and_no_weight(pico):
    whole = pico.plain("llama").state_dict()
    bare = build(pico.base("llama")).state_dict()
    assert {name: one.shape for name, one in bare.items()} == {name: one.shape for name, one in whole.items()}
    assert all(one.is_meta for one in bare.values())
    assert not any(name.startswith("lm_head") for name in build(pico.base("llama"), features_only=True).state_dict())


def test_a_taia_repository_is_no_base_model(pico, tmp_path):
    pico.taia("llama").save_pretrained(tmp_path)
    with pytest.raises(UnsupportedUpdateError, match=r"base model .* is itself a TAIA repository"):
        build(tmp_path)


def test_a_damaged_configuration_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"config\.json' is no JSON"):
        build(tmp_path)
