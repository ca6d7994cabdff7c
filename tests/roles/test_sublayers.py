from __future__ import annotations

import re
import time

import pytest
import torch
import transformers
from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from taia_hub.errors import ConfigError
from taia_hub.roles import sublayers
from taia_hub.roles.overrides import OVERRIDES
from taia_hub.roles.sublayers import find_sublayers, register_roles, sublayer_roles
from tests import make_role_table

ROWS = [tuple(line.split("\t")) for line in make_role_table.TABLE.read_text().splitlines()[1:]]


def on_meta(config):
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config)


def roles_of(name, suffix="ForCausalLM", **config):
    with torch.device("meta"):
        model = getattr(transformers, name + suffix)(getattr(transformers, name + "Config")(**config))
    return find_sublayers(model)


# --- the committed table -------------------------------------------------------------------------------------------


CASES = {case.label: case for case in make_role_table.cases()}
OWNERS = {
    "DebertaV2Encoder": "deberta-v2/MaskedLM",
    "DeepseekV4DecoderLayer": "deepseek_v4",
    "Gemma3nTextDecoderLayer": "gemma3n_text",
    "Gemma4TextDecoderLayer": "gemma4",
    "HYV4DecoderLayer": "hy_v4",
    "Inkling2FullDecoderLayer": "inkling2_text",
    "Inkling2SlidingDecoderLayer": "inkling2_text",
    "InklingDecoderLayer": "inkling_text",
    "MobileBertLayer": "mobilebert/MaskedLM",
    "MobileBertOutput": "mobilebert/MaskedLM",
    "Qwen4ExpTextDecoderLayer": "qwen4_exp",
    "SqueezeBertModule": "squeezebert/MaskedLM",
    "Zamba2HybridLayer": "zamba2",
    "ZambaHybridLayer": "zamba",
}


@pytest.mark.slow
@pytest.mark.parametrize("label", CASES)
def test_every_model_agrees_with_the_committed_table(label):
    expected = {"\t".join(row) for row in ROWS if row[0] == label}
    model = make_role_table.build(CASES[label])
    assert set(make_role_table.lines(CASES[label], model)) == expected, "rewrite the table and read the difference"
    classes = {base.__name__ for module in model.modules() for base in type(module).__mro__}
    missing = {owner for owner, place in OWNERS.items() if place == label} - classes
    assert not missing, "an override for a class that no model has"


def test_the_table_has_these_models_and_every_override_has_one():
    assert {label for label, _, _ in ROWS} == set(CASES)
    assert {entry.owner for entry in OVERRIDES} == set(OWNERS)


def test_the_table_covers_the_whole_causal_mapping():
    labels = {label for label, _, _ in ROWS}
    theirs = {
        name for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if not name.startswith("taia ")
    }  # else a loaded model's
    assert theirs - labels == set(make_role_table.UNBUILT)


def test_only_known_doubts_are_unplaced():
    # The depthwise convolutions between the sublayers of Florence-2's vision tower encode positions.
    unplaced = {(label, modules.split(".")[-1]) for label, modules, role in ROWS if role == "unplaced"}
    assert unplaced == {("florence2/ImageTextToText", "conv1"), ("florence2/ImageTextToText", "conv2")}


# A person's reading of the names, written without a look at the code: the word nearest to the weight that is on
# either list decides, a container before a projection.
ATTENTION_NAME = re.compile(
    r"(self_?|cross_?|encoder_|linear_|multi_head_|rel_|window_|channel_)?(attn|attention|attentions|att)|"
    r"(Enc|Local)?(Dec|Self)Attention|mamba|mlstm_layer|temporal_block|x_attn|EncDecAttention"
)
FFN_NAME = re.compile(
    r"mlp|mlps|ffn\d?|ffns|ff|feed_forward(_in|_out)?|ffw_\w+|experts|router|shared_experts?|block_sparse_moe|shared_mlp|"
    r"mlp_block|DenseReluDense|intermediate|expert_\*"
)
ATTENTION_WEIGHT = re.compile(r"[qkvo]_proj|[qkv]_lin|query|c_attn|query_key_value|W?qkv(_proj)?|kv_[ab]_proj\w*|A_log")
FFN_WEIGHT = re.compile(r"fc[12]|(gate|up|down|gate_up)_proj|c_fc|wi(_\d)?|dense_(4h_to_h|h_to_4h)|lin[12]")
EXCEPTIONS = {
    r"jetmoe\t.*self_attention\.experts.*": "a mixture of attention heads: experts inside an attention",
    r"axk2\t.*layernorm\.mlp\.fc\d": "the gate of a gated norm",
    r".*\t.*(merger|projector|modality_projection|visual_projection|adapter)(_list)?\b.*": "leads a tower in",
    r"mobilebert.*\.bottleneck\..*": "narrows the stream for both sublayers",
}


def read_by_name(modules):
    segments = modules.split(".")
    for segment in reversed(segments):
        if ATTENTION_NAME.fullmatch(segment):
            return "attention"
        if FFN_NAME.fullmatch(segment):
            return "ffn"
    if ATTENTION_WEIGHT.fullmatch(segments[-1]):
        return "attention"
    return "ffn" if FFN_WEIGHT.fullmatch(segments[-1]) else None


def test_no_row_contradicts_its_name():
    norm = re.compile(r"(?i).*(norm\d?|ln(_\w+)?|layernorm_before_\w+)$")
    wrong, needed = [], set()
    for label, modules, role in ROWS:
        by_name = read_by_name(modules)
        if by_name in (None, role) or (role == "other" and norm.match(modules)):
            continue
        excepted = {line for line in EXCEPTIONS if re.fullmatch(line, f"{label}\t{modules}")}
        needed |= excepted
        if not excepted:
            wrong.append(f"{label}\t{modules}\t{role}, by name {by_name}")
    assert not wrong, "\n".join(wrong)
    assert needed == set(EXCEPTIONS)


# --- traps, on real classes ----------------------------------------------------------------------------------------


def test_bert_tells_the_two_output_dense_apart():
    roles = roles_of("Bert", "LMHeadModel").roles
    layer = "bert.encoder.layer.0"
    assert roles[f"{layer}.attention.output.dense"] == "attention"
    assert roles[f"{layer}.output.dense"] == roles[f"{layer}.intermediate.dense"] == "ffn"
    assert roles[f"{layer}.attention.output.LayerNorm"] == roles[f"{layer}.output.LayerNorm"] == "other"
    assert roles["cls.predictions.transform.dense"] == "other"


def test_gpt2_tells_the_two_c_proj_apart():
    roles = roles_of("GPT2", "LMHeadModel").roles
    assert roles["transformer.h.0.attn.c_proj"] == "attention"
    assert roles["transformer.h.0.mlp.c_proj"] == "ffn"


def test_opt_has_its_mlp_bare_in_the_layer():
    roles = roles_of("OPT").roles
    assert roles["model.decoder.layers.0.fc1"] == roles["model.decoder.layers.0.fc2"] == "ffn"
    assert roles["model.decoder.layers.0.final_layer_norm"] == "other"


def test_albert_has_half_of_its_mlp_under_another_name():
    roles = roles_of("Albert", "ForMaskedLM").roles
    layer = "albert.encoder.albert_layer_groups.0.albert_layers.0"
    assert roles[f"{layer}.ffn"] == roles[f"{layer}.ffn_output"] == "ffn"
    assert roles[f"{layer}.attention.dense"] == "attention"


def test_a_model_name_with_a_keyword_is_no_sign():
    roles = roles_of("Afmoe", num_hidden_layers=4).roles
    assert roles["model.layers.3.self_attn.gate_proj"] == "attention"
    assert roles["model.layers.3.mlp.router.gate"] == "ffn"
    assert roles_of("Mamba", num_hidden_layers=1).roles["lm_head"] == "other"


class MoeGptStem(nn.Module):
    def __init__(self):
        super().__init__()
        self.dense = nn.Linear(8, 8)

    def forward(self, x):
        return x


class MoeGptModel(nn.Module):
    def __init__(self):
        super().__init__()
        layers = [nn.ModuleDict({"stem": MoeGptStem(), "attn": nn.MultiheadAttention(8, 2)}) for _ in range(2)]
        self.layers = nn.ModuleList(layers)


def test_the_name_of_a_custom_model_is_taken_off_its_classes():
    found = find_sublayers(MoeGptModel())
    assert found.unplaced == ("layers.0.stem.dense", "layers.1.stem.dense")
    assert found.roles["layers.0.attn"] == "attention"


def test_experts_that_are_parameters_are_ffn():
    roles = roles_of("Mixtral", num_hidden_layers=1).roles
    assert roles["model.layers.0.mlp.experts"] == roles["model.layers.0.mlp.gate"] == "ffn"
    roles = roles_of("Qwen2Moe", num_hidden_layers=1).roles
    assert roles["model.layers.0.mlp.shared_expert_gate"] == "ffn"


def test_a_gate_beside_a_list_of_experts_is_its_router():
    class Sparse(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate, self.experts = nn.Linear(8, 2), nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])

        def forward(self, x):
            return x

    layer = nn.ModuleDict({"attn": nn.MultiheadAttention(8, 2), "sparse": Sparse()})
    assert sublayer_roles(nn.ModuleDict({"layers": nn.ModuleList([layer])}))["layers.0.sparse.gate"] == "ffn"


def test_experts_inside_an_attention_are_attention():
    roles = roles_of("JetMoe", num_hidden_layers=1).roles
    assert roles["model.layers.0.self_attention.experts.input_linear"] == "attention"
    assert roles["model.layers.0.mlp.input_linear"] == "ffn"


def test_mixers_of_hybrids_are_attention():
    roles = roles_of("Jamba", num_hidden_layers=8).roles
    assert {role for path, role in roles.items() if ".mamba" in path or ".self_attn" in path} == {"attention"}
    roles = roles_of("NemotronH").roles
    assert {role for path, role in roles.items() if path.endswith(("mixer.up_proj", "mixer.experts"))} == {"ffn"}
    assert {role for path, role in roles.items() if path.endswith(("mixer.q_proj", "mixer.in_proj"))} == {"attention"}


def test_a_shared_block_is_no_sublayer_of_its_own():
    roles = roles_of("Zamba2").roles
    shared = {path.split("shared_transformer.")[1]: role for path, role in roles.items() if "shared_tr" in path}
    assert shared["self_attn.q_proj"] == "attention"
    assert shared["feed_forward.down_proj"] == "ffn"
    assert shared["input_layernorm"] == "other"


def test_a_class_called_norm_may_hold_an_attention():
    roles = roles_of("Dbrx", attn_config={"rope_theta": 1e4}).roles
    assert roles["transformer.blocks.0.norm_attn_norm.attn.Wqkv"] == "attention"
    assert roles["transformer.blocks.0.norm_attn_norm.norm_1"] == "other"
    gate = roles_of("AXK2", num_hidden_layers=2).roles["model.layers.0.input_layernorm.mlp.fc1"]
    assert gate == "other"


def test_attention_that_owns_raw_parameters():
    roles = roles_of("XLNet", "LMHeadModel").roles
    assert roles["transformer.layer.0.rel_attn"] == "attention"
    assert roles["transformer.layer.0.rel_attn.layer_norm"] == "other"


def test_gates_and_projections_of_the_residual_stream_are_other():
    with torch.device("meta"):
        model = transformers.Gemma3nForCausalLM(transformers.Gemma3nTextConfig())
    found = find_sublayers(model)
    layer = "model.layers.0"
    for name in ("altup.modality_router", "laurel.linear_left", "per_layer_input_gate", "per_layer_projection"):
        assert found.roles[f"{layer}.{name}"] == "other"
    assert not found.unplaced


def test_a_projector_is_other_though_it_is_an_mlp():
    with torch.device("meta"):
        model = transformers.Qwen2VLForConditionalGeneration(transformers.Qwen2VLConfig())
    roles = sublayer_roles(model)
    assert roles["model.visual.merger.mlp.0"] == "other"
    assert roles["model.visual.blocks.0.mlp.fc1"] == "ffn"
    model = tiny_llama()
    model.bridge = nn.ModuleDict({"mlp": nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8))})
    assert sublayer_roles(model)["bridge.mlp.0"] == "other"


# --- what a model may look like by the time it is read -------------------------------------------------------------


def tiny_llama():
    sizes = {"vocab_size": 16, "hidden_size": 16, "intermediate_size": 40, "num_attention_heads": 2}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(num_hidden_layers=2, **sizes))


def test_real_and_meta_models_agree():
    model = tiny_llama()
    with torch.device("meta"):
        meta = transformers.LlamaForCausalLM(model.config)
    assert sublayer_roles(model) == sublayer_roles(meta)


def test_every_owner_of_parameters_has_a_role():
    model = tiny_llama()
    owners = [name for name, module in model.named_modules() if any(True for _ in module.parameters(recurse=False))]
    assert list(sublayer_roles(model)) == owners


def test_a_generated_subclass_changes_nothing():
    model = tiny_llama()
    expected = sublayer_roles(model)
    model.__class__ = type("TAIALlamaForCausalLM", (transformers.LlamaForCausalLM,), {})
    model.model.layers[0].mlp.__class__ = type("Swapped", (type(model.model.layers[0].mlp),), {})
    assert sublayer_roles(model) == expected


class FakeLinear4bit(nn.Module):
    def __init__(self, linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = nn.Parameter(torch.zeros(linear.weight.numel() // 2, 1))


def test_quantised_linear_classes_are_read_by_their_widths():
    model = transformers.OPTForCausalLM(transformers.OPTConfig(
        vocab_size=16, hidden_size=16, ffn_dim=40, num_hidden_layers=1, num_attention_heads=2, word_embed_proj_dim=16
    ))  # fmt: skip
    expected = sublayer_roles(model)
    for layer in model.model.decoder.layers:
        layer.fc1, layer.fc2 = FakeLinear4bit(layer.fc1), FakeLinear4bit(layer.fc2)
        layer.self_attn.q_proj = FakeLinear4bit(layer.self_attn.q_proj)
    assert sublayer_roles(model) == expected


def test_a_custom_class_around_the_layers():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
            self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(8, 8) for _ in range(4))
            self.fc1, self.fc2 = nn.Linear(8, 32), nn.Linear(32, 8)

        def forward(self, x, attention_mask=None):
            return x

    model = nn.ModuleDict({"embed": nn.Embedding(4, 8), "layers": nn.ModuleList([Block(), Block()])})
    found = find_sublayers(model)
    assert found.roles["layers.1.fc1"] == found.roles["layers.1.fc2"] == "ffn"
    assert {found.roles[f"layers.1.{name}_proj"] for name in "qkvo"} == {"attention"}
    assert not found.unplaced


# --- doubts, and what a person says about them ---------------------------------------------------------------------


class Mystery(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        return x


class MysteryLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.mystery = nn.LayerNorm(8), Mystery()
        self.mlp = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8))


class MysteryModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.config = transformers.PreTrainedConfig()
        self.config.model_type = "mystery"
        self.embed, self.head = nn.Embedding(4, 8), nn.Linear(8, 4)
        self.layers = nn.ModuleList([MysteryLayer(), MysteryLayer()])


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.setattr(sublayers, "_registered", {})


def test_what_cannot_be_placed_is_other_and_reported():
    model = MysteryModel()
    assert find_sublayers(model).unplaced == tuple(f"layers.{i}.mystery.{name}" for i in (0, 1) for name in "ab")
    roles = sublayer_roles(model)
    assert roles["layers.0.mystery.a"] == "other"
    assert roles["layers.0.mlp.0"] == "ffn"


def test_one_weight_for_attention_and_mlp_is_not_placed():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.qkv_mlp, self.out_proj = nn.LayerNorm(8), nn.Linear(8, 56), nn.Linear(40, 8)

        def forward(self, x, attention_mask=None):
            return x

    model = nn.ModuleDict({"layers": nn.ModuleList([Block()])})
    assert find_sublayers(model).unplaced == ("layers.0.qkv_mlp", "layers.0.out_proj")


@pytest.mark.parametrize("key", ["mystery", MysteryModel])
def test_registered_roles_win(registry, key):
    register_roles(key, {"layers.*.mystery": "attention", "layers.1.mlp": "other"})
    found = find_sublayers(MysteryModel())
    assert found.roles["layers.0.mystery.a"] == "attention"
    assert found.roles["layers.0.mlp.0"] == "ffn"
    assert found.roles["layers.1.mlp.0"] == "other"
    assert not found.unplaced
    assert sublayer_roles(tiny_llama())["model.layers.0.mlp.up_proj"] == "ffn"


def test_an_empty_registration_removes_one(registry):
    register_roles("mystery", {"layers.*.mystery": "attention"})
    register_roles("mystery", {})
    assert find_sublayers(MysteryModel()).unplaced


def test_a_registration_is_checked(registry):
    with pytest.raises(ConfigError, match=r"Unknown sublayer role 'atention' for 'a'\. Did you mean 'attention'"):
        register_roles("mystery", {"a": "atention"})
    with pytest.raises(ConfigError, match="Cannot register sublayer roles for 3"):
        register_roles(3, {"a": "ffn"})
    with pytest.raises(ConfigError, match="A pattern of sublayer roles is ''"):
        register_roles("mystery", {"": "ffn"})
    assert not sublayers._registered


def test_a_registered_pattern_must_match(registry):
    register_roles("mystery", {"layers.*.mistery": "attention"})
    with pytest.raises(ConfigError, match="matches no module with parameters of MysteryModel"):
        sublayer_roles(MysteryModel())


def test_a_32_layer_llama_takes_less_than_50_ms():
    model = on_meta(transformers.LlamaConfig())
    sublayer_roles(model)
    times = []
    for _ in range(5):
        start = time.process_time()
        sublayer_roles(model)
        times.append(time.process_time() - start)
    assert min(times) < 0.05
