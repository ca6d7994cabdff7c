"""What a review found wrong once; each test failed before it was mended."""

import copy
import json

import pytest
import torch
from huggingface_hub import CommitOperationAdd
from peft import LoraConfig
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, AutoTokenizer

from taia_hub import TAIAConfig, TAIAForCausalLM, TAIAModel
from taia_hub.errors import ConfigError, RepositoryError, SettingError, UnsupportedUpdateError, UpdateMismatchError
from taia_hub.switch.switch import KeepSetting, RowWeights
from taia_hub.updates.peft import lora


def test_a_push_with_another_base_brings_that_bases_tokenizer(online, repo_id, tokenizer):
    online.push_base(f"{repo_id}-base2")
    other = copy.deepcopy(tokenizer)
    other.add_tokens(["theother"])
    other.push_to_hub(f"{repo_id}-base2")
    TAIAForCausalLM.from_adapter(online.base, online.adapter).push_to_hub(repo_id)
    TAIAForCausalLM.from_adapter(f"{repo_id}-base2", online.adapter).push_to_hub(repo_id)
    assert "theother" in AutoTokenizer.from_pretrained(repo_id).get_vocab()


def test_a_tokenizer_that_a_person_pushed_for_the_same_base_stays(online, repo_id, tokenizer):
    model = TAIAForCausalLM.from_adapter(online.base, online.adapter)
    model.push_to_hub(repo_id)
    mine = copy.deepcopy(tokenizer)
    mine.add_tokens(["mine"])
    mine.push_to_hub(repo_id)
    model.push_to_hub(repo_id)
    assert "mine" in AutoTokenizer.from_pretrained(repo_id).get_vocab()


def test_a_commit_between_looking_and_publishing_is_a_race(online, repo_id, monkeypatch):
    model = TAIAForCausalLM.from_adapter(online.base, online.adapter)
    model.push_to_hub(repo_id)
    from taia_hub.repository import publishing

    publish = publishing.hub.publish

    def late(*args, **kwargs):
        card = [CommitOperationAdd("README.md", b"# mine\n")]
        online.api.create_commit(repo_id, card, commit_message="by hand")
        return publish(*args, **kwargs)

    monkeypatch.setattr(publishing.hub, "publish", late)
    with pytest.raises(RepositoryError, match="another commit"):
        model.push_to_hub(repo_id)
    with open(online.api.hf_hub_download(repo_id, "README.md")) as card:
        assert card.read() == "# mine\n"


def test_a_repository_that_somebody_makes_meanwhile_gets_no_commit(online, repo_id, monkeypatch):
    from taia_hub.repository import publishing

    publish = publishing.hub.publish

    def late(*args, **kwargs):
        online.api.create_repo(repo_id)
        online.api.upload_file(path_or_fileobj=b"# theirs\n", path_in_repo="README.md", repo_id=repo_id)
        return publish(*args, **kwargs)

    monkeypatch.setattr(publishing.hub, "publish", late)
    with pytest.raises(RepositoryError, match="409"):
        TAIAForCausalLM.from_adapter(online.base, online.adapter).push_to_hub(repo_id)
    assert set(online.files(repo_id)) - {"", ".gitattributes"} == {"README.md"}


def test_a_sharded_model_is_not_overwritten(pico, tmp_path):
    pico.plain("llama").save_pretrained(tmp_path / "model", max_shard_size="5KB")
    assert not (tmp_path / "model/model.safetensors").exists()
    before = (tmp_path / "model/config.json").read_bytes()
    with pytest.raises(RepositoryError, match="holds another model"):
        pico.taia("llama").save_pretrained(tmp_path / "model")
    assert (tmp_path / "model/config.json").read_bytes() == before


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_recomputation_keeps_the_setting_when_the_setter_is_used_before_backward(pico, use_reentrant):
    model, ids = pico.taia("llama", is_trainable=True).train(), pico.ids()

    def gradients(checkpointed):
        one = copy.deepcopy(model)
        one.inference_modules = "attention"
        if checkpointed:
            one.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
            one.enable_input_require_grads()
        loss = one(input_ids=ids, labels=ids).loss
        one.inference_modules = "all"
        loss.backward()
        return {name: p.grad for name, p in one.named_parameters() if p.grad is not None}

    plain, again = gradients(False), gradients(True)
    assert plain.keys() == again.keys()
    assert all(torch.equal(plain[name], again[name]) for name in plain)


def test_the_function_of_checkpointing_is_wrapped_with_the_models_switch(pico):
    model = pico.taia("llama", is_trainable=True)
    model.gradient_checkpointing_enable()
    assert all(
        isinstance(module._gradient_checkpointing_func, KeepSetting)
        for module in model.modules()
        if hasattr(module, "_gradient_checkpointing_func")
    )
    assert KeepSetting(checkpoint, model._taia_switch).switch is model._taia_switch


def test_the_backbone_of_a_class_without_its_prefix(pico, tmp_path):
    from transformers import Llama4ForCausalLM, Llama4TextConfig

    config = Llama4TextConfig(
        vocab_size=64, hidden_size=16, intermediate_size=16, intermediate_size_mlp=16, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8, num_local_experts=2, moe_layers=[],
    )  # fmt: skip
    torch.manual_seed(0)
    base = Llama4ForCausalLM(config)
    base.save_pretrained(tmp_path / "base")
    from peft import get_peft_model

    lora_config = LoraConfig(r=2, target_modules=["q_proj", "o_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    get_peft_model(base, lora_config).save_pretrained(tmp_path / "lora")
    backbone = TAIAModel.from_adapter(tmp_path / "base", tmp_path / "lora")
    head = TAIAForCausalLM.from_adapter(tmp_path / "base", tmp_path / "lora")
    assert not hasattr(backbone, "lm_head")
    ids = pico.ids()
    with torch.no_grad():
        inside = head(ids, output_hidden_states=True).hidden_states[-1]
        assert torch.equal(backbone(ids).last_hidden_state, inside)
    backbone.save_pretrained(tmp_path / "saved", state_dict=backbone.state_dict())
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path / "saved")(ids).logits, head(ids).logits)


def test_half_a_state_dict_is_not_saved(pico, tmp_path):
    model = pico.taia("llama")
    half = {name: tensor for name, tensor in model.state_dict().items() if "layers.0." in name}
    with pytest.raises(UpdateMismatchError, match="14 of the update's 28"):
        model.save_pretrained(tmp_path / "saved", state_dict=half)
    assert not (tmp_path / "saved").exists()


def test_the_published_setting_keeps_its_order_however_it_is_set(pico, tmp_path):
    model = pico.taia("llama")
    model.taia_config.inference_modules = {"model.layers.1.*": 1, "attention": 0}
    model.save_pretrained(tmp_path / "saved")
    assert json.loads((tmp_path / "saved/config.json").read_text())["inference_modules"] == [
        ["model.layers.1.*", 1.0],
        ["attention", 0.0],
    ]
    with pytest.raises(SettingError, match="Did you mean 'attention'"):
        model.taia_config.inference_modules = "atention"


def test_a_published_setting_that_matches_nothing_is_refused_at_once(pico):
    with pytest.raises(SettingError, match="matches none"):
        TAIAForCausalLM.from_adapter(
            pico.base("llama"), pico.adapter("llama"), is_trainable=True, inference_modules={"nomatch.*": 1}
        )


def test_a_base_model_is_fixed_by_a_sha():
    with pytest.raises(ConfigError, match="commit sha"):
        TAIAConfig(base_model_name_or_path="org/base", base_model_revision="main")


def test_a_base_without_a_revision_is_fixed_when_it_is_loaded(online, tmp_path):
    TAIAForCausalLM.from_adapter(online.base, online.adapter).save_pretrained(tmp_path / "saved")
    config = json.loads((tmp_path / "saved/config.json").read_text())
    (tmp_path / "saved/config.json").write_text(json.dumps({**config, "base_model_revision": None}))
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "saved").taia_config.base_model_revision == online.base_sha


@pytest.mark.parametrize("transposed", [False, True])
def test_the_operators_fulfil_their_contracts(pico, transposed):
    model = pico.taia("llama")
    switch, site = model._taia_switch.number, 0
    torch.manual_seed(0)
    x, y = torch.randn(2, 5, 3), torch.randn(2, 5, 4)
    if transposed:
        x, y = torch.randn(5, 2, 3).transpose(0, 1), torch.randn(5, 2, 4).transpose(0, 1)
    a, b = torch.randn(2, 3), torch.randn(4, 2)
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(lora.add_update_in_graph, (y.clone(), x, a, b, None, 0.5, switch, site), test_utils=checks)
    with_grad = [tensor.clone().requires_grad_() for tensor in (x, a, b)]
    arguments = (y, *with_grad, None, 0.5, switch, site)
    torch.library.opcheck(lora.with_update_in_graph, arguments, test_utils=checks)
    scales = torch.tensor([0.5, 0.0], dtype=torch.float64)
    torch.library.opcheck(lora.update_gradients, (torch.randn_like(y), x, a, b, scales), test_utils=checks)


def test_rows_seen_in_inference_mode_serve_gradients_later(pico):
    model, ids = pico.taia("llama", is_trainable=True), pico.ids(4)
    rows = ["all", "none", "all", {"attention": 0.5}]
    with torch.inference_mode():
        model(ids, inference_modules=rows)
    model(input_ids=ids, labels=ids, inference_modules=rows).loss.backward()
    _, weights = RowWeights((1.0, 0.5)).select(2, torch.device("cpu"))
    assert not weights.is_inference()


def test_a_merged_update_is_refused(pico):
    model, ids = pico.taia("llama"), pico.ids()
    model._taia_update.peft_model.merge_adapter()
    for setting in ("none", "attention", {"*": 0.5}):
        with pytest.raises(UnsupportedUpdateError, match="merged"):
            model(ids, inference_modules=setting)


def test_a_weight_that_only_equals_a_number_is_refused_whatever_came_before(pico):
    model = pico.taia("llama")
    model.inference_modules = {"attention": 1}
    with pytest.raises(SettingError, match="True"):
        model.inference_modules = {"attention": True}


def test_hooks_on_the_factors_are_called(pico):
    model, seen = pico.taia("llama"), []
    factor = model.model.layers[0].self_attn.q_proj.lora_A["default"]
    with torch.no_grad():
        plain = model(pico.ids()).logits
        with_hook = factor.register_forward_hook(lambda *_: seen.append(1))
        assert torch.equal(model(pico.ids()).logits, plain)
    with_hook.remove()
    assert seen == [1]


def test_strict_loading_of_a_state_dict_is_strict(pico):
    model = pico.taia("llama")
    tensors = model._taia_update.parameters()
    first = next(iter(tensors))
    renamed = {("base_model.model.nothing" if name == first else name): value for name, value in tensors.items()}
    with pytest.raises(UpdateMismatchError, match="1 are missing and 1 belong"):
        model.load_state_dict(renamed)
    assert model.load_state_dict(renamed, strict=False).unexpected_keys


def test_options_of_transformers_configurations_reach_the_base(pico, tmp_path):
    pico.taia("llama").save_pretrained(tmp_path / "saved")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", output_hidden_states=True)
    assert model.config.output_hidden_states
    assert len(model(pico.ids()).hidden_states) == 3


def test_a_foreign_config_is_refused(pico, tmp_path):
    pico.taia("llama").save_pretrained(tmp_path / "saved")
    with pytest.raises(ConfigError, match="LlamaConfig came as `config`"):
        TAIAForCausalLM.from_pretrained(tmp_path / "saved", config=pico.plain("llama").config)


def test_a_token_is_not_shown():
    from taia_hub.hub import HubAccess

    assert "secret" not in repr(HubAccess(token="secret"))


def test_a_pointer_is_pushed_without_the_copy_that_lay_there(online, repo_id, tmp_path):
    from taia_hub.repository.creating import create_repository
    from taia_hub.repository.publishing import push_folder

    create_repository(online.base, online.adapter, out=tmp_path / "made")
    create_repository(online.base, online.adapter, out=tmp_path / "made", link=True)
    push_folder(tmp_path / "made", repo_id)
    assert not any(name.startswith("adapter/") for name in online.api.list_repo_files(repo_id))


def test_saving_into_the_working_directory_names_the_card(pico, tmp_path, monkeypatch):
    (tmp_path / "my-model").mkdir()
    monkeypatch.chdir(tmp_path / "my-model")
    pico.taia("llama").save_pretrained(".")
    assert "# my-model\n" in (tmp_path / "my-model/README.md").read_text()


def test_saving_through_a_link_to_a_folder(pico, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    pico.taia("llama").save_pretrained(tmp_path / "link")
    assert (tmp_path / "real/taia_manifest.json").is_file()
