"""Refined updates as repositories: made of an adapter or a fine-tune, loaded, published, described, and refused."""

import json
import shutil

import pytest
import torch
from peft import LoHaConfig, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, LlamaConfig
from transformers.pytorch_utils import Conv1D

from taia_hub import TAIAForCausalLM, TAIAModel
from taia_hub.errors import ConfigError, RepositoryError, TAIAError, UnsupportedUpdateError, UpdateMismatchError
from taia_hub.refining import norm
from taia_hub.refining.report import REFINEMENT_FILE, Refinement
from taia_hub.repository.creating import create_from_finetuned, create_repository
from taia_hub.updates.molora.config import MoLoraSettings
from taia_hub.updates.molora.update import add_molora, save_molora
from taia_hub.weights.base_weights import BaseWeights

WEIGHTS, CONFIG, PREFIX = "adapter_model.safetensors", "adapter_config.json", "base_model.model."
KINDS = {
    "plain": ("llama", {}),
    "stabilised": ("llama", {"use_rslora": True}),
    "by pattern": ("llama", {"rank_pattern": {"q_proj": 6}, "alpha_pattern": {"q_proj": 3, "down_proj": 20}}),
    "transposed": ("gpt2", {"fan_in_fan_out": True}),
}


def adapter_of(pico, kind):
    name, options = KINDS[kind]
    return name, pico.adapter(name, pico.lora(name, **options), f"refined-{kind}") if options else pico.adapter(name)


def searched(b, a, weight):
    """Cuts a product as NoRM does, by whole decompositions; returns it and the number of its components."""
    rank, (outputs, _) = len(a), weight.shape
    base = torch.linalg.svd(weight)[0][:, :rank]
    u, s, vh = torch.linalg.svd(b @ a, full_matrices=False)
    best = (-1.0, 0)
    for kept in sorted({max(1, rank * tenths // 10) for tenths in range(1, 11)}):
        own = (base.T @ u[:, :kept]).square().sum()
        best = max(best, (float((own + (rank - kept) * (rank - own) / (outputs - kept)) / rank), kept))
    return (u[:, : best[1]] * s[: best[1]]) @ vh[: best[1]], best[1]


@pytest.mark.parametrize("words", [["--refine", "norm"], ["--refine", "dg-hard", "--dense"]])
def test_a_base_may_be_named_from_the_working_folder(pico, taia, tmp_path, monkeypatch, words):
    base = pico.base("llama")
    monkeypatch.chdir(base.parent)
    if "--dense" in words:
        model = AutoModelForCausalLM.from_pretrained(base)
        torch.manual_seed(3)
        for parameter in model.parameters():
            parameter.data += 0.01 * torch.randn_like(parameter)
        model.save_pretrained(tuned := tmp_path / "tuned")
    else:
        tuned = pico.adapter("llama")
    made = [tmp_path / "from-here", tmp_path / "whole"]
    for name, out in zip((f"./{base.name}", base), made, strict=True):
        status, _, err = taia("create", name, tuned, *words, "--out", out)
        assert status == 0, err
    weights = [next(out.rglob("*/*.safetensors")).read_bytes() for out in made]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("kind", KINDS)
def test_every_matrix_is_cut_as_a_plain_decomposition_says(pico, tmp_path, kind):
    name, adapter = adapter_of(pico, kind)
    made = create_repository(str(pico.base(name)), str(adapter), out=tmp_path / "made", refine="norm")
    assert (tmp_path / "made/adapter" / CONFIG).read_bytes() == (adapter / CONFIG).read_bytes()
    base = AutoModelForCausalLM.from_pretrained(pico.base(name))
    loaded = PeftModel.from_pretrained(base, str(tmp_path / "made/adapter"))
    before, after = load_file(adapter / WEIGHTS), load_file(tmp_path / "made/adapter" / WEIGHTS)
    assert {key: one.shape for key, one in before.items()} == {key: one.shape for key, one in after.items()}
    cut = 0
    for one in made.refinement.matrices:
        layer = loaded.base_model.model.get_submodule(one.name)
        weight = layer.get_base_layer().weight.detach().double()
        keys = [f"{PREFIX}{one.name}.lora_{factor}.weight" for factor in "AB"]
        expected, kept = searched(before[keys[1]].double(), before[keys[0]].double(), _outputs_first(weight, layer))
        assert one.kept == kept
        scaling = layer.scaling["default"]
        assert torch.allclose(
            _outputs_first(layer.get_delta_weight("default"), layer).double(), expected * scaling, atol=1e-6
        )
        assert one.kept_norm == pytest.approx(float((expected * scaling).norm()), rel=1e-6)
        if kept == one.rank:
            assert all(torch.equal(before[key], after[key]) for key in keys)
        else:
            cut += 1
            assert int(torch.linalg.matrix_rank(after[keys[1]] @ after[keys[0]])) == kept
    assert 0 < cut < len(made.refinement.matrices) == len(before) // 2


def _outputs_first(weight, layer):
    return weight.T if isinstance(layer.get_base_layer(), Conv1D) else weight


def test_modes_act_on_a_refined_adapter_and_none_is_the_base(pico, tmp_path):
    base, adapter = pico.base("llama"), pico.adapter("llama")
    create_repository(str(base), str(adapter), out=tmp_path / "made", refine="norm")
    model, ids = TAIAForCausalLM.from_pretrained(tmp_path / "made").eval(), pico.ids()
    peft = PeftModel.from_pretrained(pico.plain("llama"), str(tmp_path / "made/adapter")).eval()
    assert torch.equal(model(ids, inference_modules="none").logits, pico.plain("llama")(ids).logits)
    assert torch.equal(model(ids, inference_modules="all").logits, peft(ids).logits)
    assert not torch.equal(peft(ids).logits, pico.peft("llama", adapter)(ids).logits)
    loaded = TAIAForCausalLM.from_adapter(base, adapter, refine="norm").eval()
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    loaded.save_pretrained(tmp_path / "saved")
    for name in (f"adapter/{WEIGHTS}", f"adapter/{CONFIG}", REFINEMENT_FILE):
        assert (tmp_path / "saved" / name).read_bytes() == (tmp_path / "made" / name).read_bytes()


@pytest.mark.parametrize("is_of_the_backbone", [False, True])
def test_the_adapter_of_a_model_without_its_head_is_refined_too(pico, tmp_path, is_of_the_backbone):
    adapter = pico.adapter("llama")
    if is_of_the_backbone:
        adapter = tmp_path / "features"
        config = LoraConfig(r=4, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
        torch.manual_seed(0)
        get_peft_model(AutoModel.from_pretrained(pico.base("llama")), config).save_pretrained(adapter)
    model = TAIAModel.from_adapter(pico.base("llama"), adapter, refine="norm", inference_modules="all").eval()
    refined = PeftModel.from_pretrained(
        AutoModel.from_pretrained(pico.base("llama")) if is_of_the_backbone else pico.plain("llama"),
        str(model._taia_update.source),
    )
    expected = refined.eval()(pico.ids(), output_hidden_states=True).hidden_states[-1]
    assert torch.equal(model(pico.ids()).last_hidden_state, expected)
    assert 0 < Refinement.load(model._taia_update.source / REFINEMENT_FILE).whole.share < 1


def test_the_record_goes_with_the_weights_that_it_is_of(pico, tmp_path, caplog):
    model = TAIAForCausalLM.from_adapter(pico.base("llama"), pico.adapter("llama"), refine="norm", is_trainable=True)
    trained = next(one for one in model.parameters() if one.requires_grad)
    with torch.no_grad():
        trained.add_(1.0)
    model.save_pretrained(tmp_path / "trained")
    assert not (tmp_path / "trained" / REFINEMENT_FILE).exists()
    create_repository(str(pico.base("llama")), str(pico.adapter("llama")), out=tmp_path / "made", refine="norm")
    assert "Refined by NoRM" in (tmp_path / "made/README.md").read_text()
    model.save_pretrained(tmp_path / "made")
    assert "Refined" not in (tmp_path / "made/README.md").read_text()
    assert "refinement of another model" in caplog.text


def test_a_base_on_the_hub_is_fetched_and_the_card_is_true(online, taia, repo_id, tmp_path, empty_cache):
    status, printed, _ = taia("create", online.base, online.adapter, "--refine", "norm", "--push", repo_id)
    assert status == 0
    assert "Refined by NoRM (Jiang et al., ICLR 2025" in printed
    assert "attention: " in printed
    assert len(online.commits()) == 1
    assert {REFINEMENT_FILE, "adapter/adapter_model.safetensors"} <= set(online.files(repo_id))
    assert taia("card", repo_id, "--check")[0] == 0
    model = TAIAForCausalLM.from_pretrained(repo_id)
    here = create_repository(online.base, online.adapter, out=tmp_path / "made", refine="norm")
    assert model._taia_update.parameters().keys() == load_file(tmp_path / "made/adapter" / WEIGHTS).keys()
    again = taia("create", online.base, online.adapter, "--refine", "norm", "--out", tmp_path / "made", "--json")
    assert Refinement.from_json(json.loads(again[1])["refinement"]) == here.refinement


def test_one_weight_of_the_base_is_read_at_a_time_and_none_besides(pico, tmp_path, monkeypatch):
    read, steps = [], []
    whole = BaseWeights.read
    monkeypatch.setattr(BaseWeights, "read", lambda self, name: read.append(name) or whole(self, name))
    adapter = pico.narrowed("llama", "attention")
    create_repository(
        str(pico.base("llama")),
        str(adapter),
        out=tmp_path / "made",
        refine="norm",
        progress=lambda *step: steps.append(step),
    )
    expected = [f"{key.removeprefix(PREFIX).partition('.lora_')[0]}.weight" for key in load_file(adapter / WEIGHTS)]
    assert sorted(read) == sorted(set(expected))
    assert steps == [("refining", done, len(read)) for done in range(len(read) + 1)]


def test_what_was_made_is_known_again(pico, tmp_path, monkeypatch):
    base, adapter, out = str(pico.base("llama")), str(pico.adapter("llama")), tmp_path / "made"
    create_repository(base, adapter, out=out)
    assert not (out / REFINEMENT_FILE).exists()
    with pytest.raises(RepositoryError, match="another TAIA repository"):
        create_repository(base, adapter, out=out, refine="norm")
    first = create_repository(base, adapter, out=out, refine="norm", overwrite=True)
    monkeypatch.setattr("taia_hub.repository.creating.load_refined", None)
    again = create_repository(base, adapter, out=out, refine="norm")
    assert (again.is_new, again.refinement) == (False, first.refinement)
    with pytest.raises(RepositoryError, match="another TAIA repository"):
        create_repository(base, adapter, out=out)


def test_what_cannot_be_cut_is_kept_and_said(pico, tmp_path):
    config = pico.lora("llama", target_modules=["q_proj", "embed_tokens"], modules_to_save=["norm"])
    adapter = pico.adapter("llama", config, "refined-mixed")
    made = create_repository(str(pico.base("llama")), str(adapter), out=tmp_path / "made", refine="norm")
    before, after = load_file(adapter / WEIGHTS), load_file(tmp_path / "made/adapter" / WEIGHTS)
    left = {one.name: one.reason for one in made.refinement.left_alone}
    assert {one.name.rpartition(".")[2] for one in made.refinement.matrices} == {"q_proj"}
    assert left.keys() == {key for key in before if not key.endswith(("q_proj.lora_A.weight", "q_proj.lora_B.weight"))}
    assert all(torch.equal(before[key], after[key]) for key in left)
    assert set(left.values()) == {"of a layer of class Embedding", "a module or rows that are saved whole"}
    text = made.refinement.to_text()
    assert all(reason in text for reason in left.values())
    assert "of the update are as trained" in (tmp_path / "made/README.md").read_text()


def test_a_bias_beside_the_factors_stays(pico, tmp_path):
    adapter = pico.adapter("llama", pico.lora("llama", target_modules=["q_proj"], lora_bias=True), "refined-bias")
    made = create_repository(str(pico.base("llama")), str(adapter), out=tmp_path / "made", refine="norm")
    assert {(one.name.rpartition(".lora_")[2], one.reason) for one in made.refinement.left_alone} == {
        ("B.bias", "a bias")
    }
    before, after = load_file(adapter / WEIGHTS), load_file(tmp_path / "made/adapter" / WEIGHTS)
    assert all(torch.equal(before[one.name], after[one.name]) for one in made.refinement.left_alone)


def test_experts_as_parameters_are_kept_and_said(pico, tmp_path):
    adapter = pico.adapter("qwen3_moe")
    made = create_repository(str(pico.base("qwen3_moe")), str(adapter), out=tmp_path / "made", refine="norm")
    assert {one.role for one in made.refinement.matrices} == {"attention"}
    assert {one.reason for one in made.refinement.left_alone} == {"of experts as parameters"}
    before, after = load_file(adapter / WEIGHTS), load_file(tmp_path / "made/adapter" / WEIGHTS)
    assert all(torch.equal(before[one.name], after[one.name]) for one in made.refinement.left_alone)


@pytest.mark.parametrize(
    ("label", "said"),
    [("dora", "a Dora, whose other parameters"), ("loha", "this is a LOHA adapter"), ("mixture", "MoLoRA")],
)
def test_what_is_no_product_of_factors_is_refused(pico, tmp_path, label, said):
    base = pico.base("llama")
    if label == "mixture":
        adapter = tmp_path / "mixture"
        save_molora(add_molora(pico.plain("llama"), MoLoraSettings(rank=2, alpha=2)), adapter)
    elif label == "dora":
        adapter = pico.adapter("llama", pico.lora("llama", use_dora=True), "refined-dora")
    else:
        adapter = pico.adapter("llama", LoHaConfig(r=2, target_modules=["q_proj", "up_proj"]), "created-loha")
    with pytest.raises(UnsupportedUpdateError, match=said):
        create_repository(str(base), str(adapter), out=tmp_path / "made", refine="norm")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("damage", "error", "said"),
    [("gone", UpdateMismatchError, "lacks 1"), ("whole numbers", RepositoryError, "quantised")],
)
def test_a_base_without_the_weights_is_refused_before_any_is_read(pico, tmp_path, monkeypatch, damage, error, said):
    base = shutil.copytree(pico.base("llama"), tmp_path / "base")
    tensors, name = load_file(base / "model.safetensors"), "model.layers.1.mlp.up_proj.weight"
    tensors[name] = tensors[name].to(torch.int8)
    save_file({key: one for key, one in tensors.items() if damage != "gone" or key != name}, base / "model.safetensors")
    monkeypatch.setattr(norm, "cut_pair", None)
    with pytest.raises(error, match=said):
        create_repository(str(base), str(pico.adapter("llama")), out=tmp_path / "made", refine="norm")
    assert not (tmp_path / "made").exists()


def test_an_adapter_that_diverged_and_a_full_disk_are_refused(pico, tmp_path, monkeypatch):
    adapter = shutil.copytree(pico.adapter("llama"), tmp_path / "lora")
    monkeypatch.setattr("taia_hub.hub._errors.shutil.disk_usage", lambda path: shutil._ntuple_diskusage(9, 8, 1))
    with pytest.raises(RepositoryError, match="The refined adapter needs"):
        create_repository(str(pico.base("llama")), str(adapter), out=tmp_path / "made", refine="norm")
    monkeypatch.undo()
    tensors = load_file(adapter / WEIGHTS)
    next(iter(tensors.values()))[0] = float("nan")
    save_file(tensors, adapter / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(RepositoryError, match="NaN"):
        create_repository(str(pico.base("llama")), str(adapter), out=tmp_path / "made", refine="norm")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--refine", "nrom"], "Did you mean 'norm'"),
        (["--refine", "norm", "--link"], "points to the adapter as it is"),
        (["--refine", "dg-hard"], "--dense"),
        (["--refine", "norm", "--dense"], "Choose dg-hard"),
        (["--refine", "dg-hard", "--dense", "--compress", "4"], "either refined or compressed"),
    ],
)
def test_words_that_do_not_go_together(taia, tmp_path, words, said):
    """They are refused before anything is looked for: there are no such models."""
    status, _, printed = taia("create", "org/nowhere", "org/nothing", *words, "--out", tmp_path / "made")
    assert status == 1
    assert said in printed


# --- Full fine-tunes -----------------------------------------------------------------------------------------------
def noisy(shape, rank, seed):
    """A difference: strong components of some rank, and noise everywhere."""
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.linalg.qr(torch.randn(side, max(rank, 1), generator=generator))[0] for side in shape)
    return 0.01 * torch.randn(*shape, generator=generator) + (left[:, :rank] @ right[:, :rank].T)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A base and a full fine-tune of it in bfloat16; the second layer's up-projection has changed by noise alone."""
    root = tmp_path_factory.mktemp("pair")
    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=64, tie_word_embeddings=True, **sizes))
    model.to(torch.bfloat16).save_pretrained(root / "base")
    with torch.no_grad():
        for seed, (name, parameter) in enumerate(model.named_parameters()):
            is_noise = name == "model.layers.1.mlp.up_proj.weight"
            change = noisy(parameter.shape, 0 if is_noise else 2, seed) if parameter.ndim == 2 else 0.1
            parameter.copy_(parameter + change)
    model.save_pretrained(root / "tuned")
    return root / "base", root / "tuned"


def test_of_a_fine_tune_what_stands_out_is_kept_in_its_dtype(pair, tmp_path):
    base, tuned = pair
    steps = []
    made = create_from_finetuned(
        str(base), str(tuned), out=tmp_path / "made", refine="dg-hard", progress=lambda *step: steps.append(step)
    )
    assert {one.name: one.kept for one in made.refinement.matrices} == {
        name: 0 if "1.mlp.up_proj" in name else 2 for name in load_file(base / "model.safetensors") if "proj" in name
    }
    reasons = {one.name: one.reason for one in made.refinement.left_alone}
    assert reasons.pop("model.embed_tokens.weight") == "an embedding"
    assert set(reasons.values()) == {"of one dimension"}
    assert {stage for stage, _, _ in steps} == {"comparing", "refining", "writing, in MB"}
    before, after = (load_file(folder / "model.safetensors") for folder in pair)
    written = load_file(next((tmp_path / "made/dense").glob("*.safetensors")))
    assert written.keys() == before.keys() - {"model.layers.1.mlp.up_proj.weight"}
    for one in made.refinement.matrices:
        if one.kept:
            delta = after[one.name].double() - before[one.name].double()
            u, s, vh = torch.linalg.svd(delta, full_matrices=False)
            expected = (before[one.name].double() + (u[:, :2] * s[:2]) @ vh[:2]).bfloat16()
            assert torch.allclose(written[one.name], expected, atol=1e-2, rtol=1e-2)
            assert (written[one.name] != expected).float().mean() < 0.01  # but for ties in rounding
    assert all(torch.equal(written[name], after[name]) for name in ("model.embed_tokens.weight", "model.norm.weight"))
    assert Refinement.load(tmp_path / "made" / REFINEMENT_FILE) == made.refinement
    assert "Refined by DG-Hard" in (tmp_path / "made/README.md").read_text()


def test_a_refined_fine_tune_is_loaded_and_known_again(pair, tmp_path, monkeypatch, pico):
    base, tuned = pair
    create_from_finetuned(str(base), str(tuned), out=tmp_path / "made", refine="dg-hard")
    model, ids = TAIAForCausalLM.from_pretrained(tmp_path / "made").eval(), pico.ids()
    here = TAIAForCausalLM.from_finetuned(base, tuned, refine="dg-hard").eval()
    plain = AutoModelForCausalLM.from_pretrained(base).eval()
    assert torch.equal(model(ids, inference_modules="none").logits, plain(ids).logits)
    assert torch.equal(model(ids, inference_modules="all").logits, here(ids, inference_modules="all").logits)
    whole = AutoModelForCausalLM.from_pretrained(tuned).eval()
    assert not torch.equal(model(ids, inference_modules="all").logits, whole(ids).logits)
    here.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / REFINEMENT_FILE).read_bytes() == (tmp_path / "made" / REFINEMENT_FILE).read_bytes()
    monkeypatch.setattr("taia_hub.repository.refined.write_dense", None)
    again = create_from_finetuned(str(base), str(tuned), out=tmp_path / "made", refine="dg-hard")
    assert (again.is_new, again.refinement.method.value) == (False, "dg-hard")
    with pytest.raises(RepositoryError, match="another TAIA repository"):
        create_from_finetuned(str(base), str(tuned), out=tmp_path / "made")


@pytest.mark.parametrize("kind", ["mixtral", "granitemoe"])
def test_experts_are_cut_one_by_one(tmp_path, kind):
    """Mixtral's file has a matrix for each expert, that of Granite one stack of them."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = AutoConfig.for_model(
        kind, vocab_size=64, num_local_experts=3, num_experts_per_tok=2, num_key_value_heads=2, **sizes
    )
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path / "base")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("experts.down_proj"):
                for rank, matrix in enumerate(parameter):
                    matrix.add_(noisy(matrix.shape, rank, rank))
    model.save_pretrained(tmp_path / "tuned")
    made = create_from_finetuned(
        str(tmp_path / "base"), str(tmp_path / "tuned"), out=tmp_path / "made", refine="dg-hard"
    )
    assert sum(one.kept for one in made.refinement.matrices) == 0 + 1 + 2
    assert {one.role for one in made.refinement.matrices} == {"ffn"}
    assert len(made.refinement.matrices) == (3 if kind == "mixtral" else 1)
    path, _, attribute = next(
        name for name, _ in model.named_parameters() if name.endswith("experts.down_proj")
    ).rpartition(".")
    base = getattr(AutoModelForCausalLM.from_pretrained(tmp_path / "base").get_submodule(path), attribute)
    with TAIAForCausalLM.from_pretrained(tmp_path / "made").using("all") as loaded:
        delta = getattr(loaded.get_submodule(path), attribute) - base
    assert [int(torch.linalg.matrix_rank(one, rtol=1e-4)) for one in delta] == [0, 1, 2]


def test_a_fine_tune_that_is_noise_or_has_no_matrix_is_refused(pair, pico, tmp_path):
    base, _ = pair
    for folder, pick, said in (
        ("noise", lambda name: "q_proj" in name, "Nothing of this fine-tune stands out"),
        ("norms", lambda name: "norm" in name, "none of the 5 changed tensors is one: the first is of one dimension"),
    ):
        model = AutoModelForCausalLM.from_pretrained(base)
        with torch.no_grad():
            for seed, (name, one) in enumerate(model.named_parameters()):
                if pick(name):
                    one.add_(noisy(one.shape, 0, seed) if one.ndim == 2 else 0.5)
        model.save_pretrained(tmp_path / folder)
        with pytest.raises(UnsupportedUpdateError, match=said):
            create_from_finetuned(str(base), str(tmp_path / folder), out=tmp_path / "made", refine="dg-hard")
        assert not (tmp_path / "made").exists()
    small = AutoConfig.from_pretrained(pico.base("llama"))
    assert small.hidden_size**2 < 1024


@pytest.mark.slow
def test_a_real_model_is_refined(smollm2, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(smollm2)
    torch.manual_seed(0)
    targets = r"model\.layers\.(0|29)\..*_proj"
    config = LoraConfig(r=16, target_modules=targets, init_lora_weights=False)
    get_peft_model(base, config).save_pretrained(tmp_path / "lora")
    made = create_repository(str(smollm2), str(tmp_path / "lora"), out=tmp_path / "made", refine="norm")
    assert made.refinement.whole.matrices == 2 * 7
    assert 0 < made.refinement.whole.kept <= made.refinement.whole.rank == 2 * 7 * 16
    with pytest.raises(TAIAError):
        create_repository(str(smollm2), str(tmp_path / "lora"), out=tmp_path / "made", refine="norm", link=True)
    with pytest.raises(ConfigError):
        TAIAForCausalLM.from_adapter(smollm2, tmp_path / "lora", refine="dg-hard")
