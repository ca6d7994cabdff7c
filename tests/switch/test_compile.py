"""Compiled models: one graph serves every mode and every row, with gradients and without."""

import contextvars
import copy
import os
import shutil

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from taia_hub.errors import SettingError
from taia_hub.switch.learned import learned

MODES = ["none", "attention", "ffn", "all"]
SETTINGS = [*MODES, {"attention": 0.5, "*.mlp.*": 0.25}]
SMALL = "llama-single"
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def fullgraph():
    """Compiles a whole model; any graph break is an error, and graphs are counted."""

    def compile(model, backend="aot_eager"):
        counter = CompileCounterWithBackend(backend)
        return torch.compile(model, backend=counter, fullgraph=True), counter

    return compile


def forward(model, ids, **keywords):
    return model(input_ids=ids, use_cache=False, **keywords).logits


@pytest.mark.parametrize("name", [SMALL, "gpt2"])
def test_one_graph_serves_every_mode_and_every_row(pico, fullgraph, name):
    model, ids = pico.taia(name), pico.ids(4)
    rows = MODES, MODES[::-1], ["all", "none", "none", {"ffn": 0.5}]
    with torch.no_grad():
        expected = [forward(model, ids, inference_modules=setting) for setting in SETTINGS]
        expected_rows = [forward(model, ids, inference_modules=settings) for settings in rows]
        compiled, graphs = fullgraph(model)

        for setting, eager in zip(SETTINGS, expected, strict=True):
            with model.using(setting):
                assert torch.equal(forward(compiled, ids), eager)
            model.inference_modules = setting
            assert torch.equal(forward(compiled, ids), eager)
        for settings, eager in zip(rows, expected_rows, strict=True):
            with model._taia_switch.hold(model._taia_switch.resolve_rows(settings)):
                assert torch.equal(forward(compiled, ids), eager)

    assert graphs.frame_count == 1


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which(os.environ.get("CXX", "g++")), reason="inductor compiles with g++")
def test_inductor_serves_every_mode_with_one_graph(pico, fullgraph):
    """The graph that inductor is given with gradients is the one of the tests of gradients below."""
    model, ids = pico.taia(SMALL), pico.ids()
    compiled, graphs = fullgraph(model, "inductor")

    with torch.no_grad():
        for setting in SETTINGS:
            with model.using(setting):
                torch.testing.assert_close(forward(compiled, ids), forward(model, ids), **CLOSE)
        rows = model._taia_switch.resolve_rows(["none", "all"])
        with model._taia_switch.hold(rows):
            torch.testing.assert_close(forward(compiled, ids), forward(model, ids), **CLOSE)

    assert graphs.frame_count == 1


def test_a_copy_of_a_compiled_model_obeys_its_own_switch(pico, fullgraph):
    model, ids = pico.taia(SMALL), pico.ids()
    compiled, _ = fullgraph(model, "eager")
    with torch.no_grad():
        forward(compiled, ids)
        twin = copy.deepcopy(model)
        twin.inference_modules = "all"
        compiled_twin, _ = fullgraph(twin, "eager")
        assert torch.equal(forward(compiled_twin, ids), forward(twin, ids))
        assert torch.equal(forward(compiled, ids), forward(model, ids))
        assert not torch.equal(forward(twin, ids), forward(model, ids))


def test_the_keyword_works_on_a_compiled_model(pico):
    """The keyword is resolved outside the graph, so a compiled model takes every form of it."""
    model, ids = pico.taia(SMALL), pico.ids()
    expected = {mode: forward(model, ids, inference_modules=mode) for mode in MODES}
    rows = forward(model, ids, inference_modules=["none", "all"])
    graphs = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=graphs)

    with torch.no_grad():
        for _ in range(2):
            for mode in MODES:
                assert torch.equal(forward(compiled, ids, inference_modules=mode), expected[mode])
            assert torch.equal(forward(compiled, ids, inference_modules=["none", "all"]), rows)
        compiled_frames = graphs.frame_count
        for mode in MODES:
            forward(compiled, ids, inference_modules=mode)

    assert graphs.frame_count == compiled_frames


def gradients(model, loss):
    """The gradient of each trainable parameter: none where a masked update gets none."""
    model.zero_grad()
    loss.backward()
    return {key: value.grad for key, value in model.named_parameters() if value.requires_grad}


def assert_gradients(ours, expected, **close):
    """Compares them: a masked update gets no gradient in eager code, and zeros from the one graph of all modes."""
    assert any(gradient is not None for gradient in expected.values())
    for key, gradient in expected.items():
        torch.testing.assert_close(ours[key], torch.zeros_like(ours[key]) if gradient is None else gradient, **close)


@pytest.mark.slow
def test_gradients_in_16_bit_equal_those_of_eager_code(pico, fullgraph):
    model, ids = pico.taia(SMALL, is_trainable=True, dtype=torch.bfloat16), pico.ids()
    compiled, graphs = fullgraph(model)

    for setting in SETTINGS[1:]:
        with model.using(setting):
            expected, ours = (gradients(model, one(ids, labels=ids, use_cache=False).loss) for one in (model, compiled))
        assert_gradients(ours, expected, rtol=0.1, atol=0.02)

    assert graphs.frame_count == 1


def test_learned_weights_are_refused_and_learned_without_the_graph(pico):
    model, ids = pico.taia(SMALL), pico.ids()
    switch = model._taia_switch
    weights = torch.full((len(switch.sites),), 0.5, requires_grad=True)
    compiled = torch.compile(model, backend="eager")
    with switch.hold(learned(switch, weights.unbind())):
        for context in (torch.enable_grad, torch.no_grad):
            with context(), pytest.raises(SettingError, match="A learned weight came in a compiled model"):
                forward(compiled, ids)
        with torch.compiler.set_stance("force_eager"):
            forward(compiled, ids).square().mean().backward()
    assert weights.grad.abs().min() > 0


@pytest.mark.slow
def test_gradients_equal_those_of_eager_code(pico, fullgraph):
    """By mode and by row; and the backward pass goes by the weights that its forward had, whatever is in force then."""
    pico.adapter(SMALL, pico.lora(SMALL, lora_bias=True, lora_dropout=0.3), "bias_and_dropout")
    model, ids = pico.taia(SMALL, "bias_and_dropout", is_trainable=True), pico.ids(3)  # dropout rests in eval mode
    compiled, graphs = fullgraph(model)
    rows = model._taia_switch.resolve_rows(["ffn", "all", {"attention": 0.5}])
    every = [model._taia_switch.resolve(setting) for setting in SETTINGS[1:]]

    for setting in (*every, rows):
        with model._taia_switch.hold(setting):
            expected, ours = (gradients(model, forward(one, ids).square().mean()) for one in (model, compiled))
        assert_gradients(ours, expected, **CLOSE)

    weight = model.model.layers[0].mlp.up_proj.lora_B["default"].weight
    found = []
    for one, later in ((compiled, "none"), (model, "all")):
        with model.using({"*": 0.5}):
            loss = forward(one, ids).square().mean()
        with model.using(later):
            found.append(torch.autograd.grad(loss, weight)[0])
    torch.testing.assert_close(*found, **CLOSE)
    assert graphs.frame_count == 1


@pytest.mark.slow
@pytest.mark.parametrize("autocast", [True, False])
def test_a_compiled_16_bit_model_equals_eager_code(pico, fullgraph, autocast):
    options = {"dtype": torch.bfloat16, "autocast_adapter_dtype": autocast}
    model, ids = pico.taia(SMALL, **options), pico.ids()
    compiled, _ = fullgraph(model)

    with torch.no_grad():
        for setting in MODES:
            with model.using(setting):
                assert torch.equal(forward(compiled, ids), forward(model, ids))


def generate(model, ids, **keywords):
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "cache_implementation": "static"}
    return model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options, **keywords)


@pytest.mark.slow
def test_a_compiled_forward_generates_in_every_mode(pico):
    """With a static cache, `generate` runs a compiled forward; here it is compiled by hand, as on a CPU it is not."""
    model, ids = pico.taia(SMALL), pico.ids(1).repeat(4, 1)
    expected = {mode: generate(model, ids, inference_modules=mode) for mode in MODES}
    rows = generate(model, ids, inference_modules=MODES)

    graphs = CompileCounterWithBackend("eager")
    model.forward = torch.compile(model.forward, backend=graphs)

    frames = set()
    for mode in (*MODES, "none"):
        assert torch.equal(generate(model, ids, inference_modules=mode), expected[mode])
        frames.add(graphs.frame_count)
    for settings in (MODES, MODES[::-1], ["all", {"ffn": 0.5}, "none", "none"]):
        tokens = generate(model, ids, inference_modules=settings)
        assert settings != MODES or torch.equal(tokens, rows)
        frames.add(graphs.frame_count)
    for mode in (*MODES, MODES):
        model.inference_modules = "all"
        generate(model, ids, inference_modules=mode)
        frames.add(graphs.frame_count)
    assert len(frames) == 1  # the first mode compiled all that the others run, and the rows whatever they are set to


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_static_cache_on_a_gpu_follows_the_mode_between_calls(pico, dtype):
    """There `generate` compiles the decoding step with CUDA graphs by itself, which replay what ran at capture."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    model, ids = pico.taia(SMALL, dtype=dtype).cuda(), pico.ids(1).cuda()
    expected = {mode: generate(model, ids, inference_modules=mode, disable_compile=True) for mode in MODES}
    rows = generate(model, ids.repeat(4, 1), inference_modules=MODES, disable_compile=True)

    for mode in (*MODES, *MODES[::-1], "ffn", "none"):
        assert torch.equal(generate(model, ids, inference_modules=mode), expected[mode]), mode
        model.inference_modules = mode
        assert torch.equal(generate(model, ids), expected[mode]), mode
    assert torch.equal(generate(model, ids.repeat(4, 1), inference_modules=MODES), rows)
    assert len({tuple(tokens.flatten().tolist()) for tokens in expected.values()}) > 1


@pytest.mark.slow
def test_fusing_compiles_once_and_is_left_again(pico, fullgraph):
    """A graph from before must not add the update a second time, one of a fused model none too few or another."""
    model, ids = pico.taia(SMALL), pico.ids()
    compiled, graphs = fullgraph(model, "eager")
    before = contextvars.copy_context()
    before.run(model.using("all").__enter__)
    with torch.no_grad():
        with model.using("all"), model.fused("attention"), pytest.raises(SettingError, match="is fused"):
            forward(compiled, ids)
        expected = {mode: forward(model, ids, inference_modules=mode) for mode in ("attention", "all")}
        frames = []
        for _ in range(2):
            for mode, unfused in expected.items():
                with model.using(mode):
                    assert torch.equal(forward(compiled, ids), unfused)
                with model.fused(mode):
                    torch.testing.assert_close(forward(compiled, ids), unfused, **CLOSE)
                    assert torch.equal(forward(compiled, ids), forward(model, ids))
                frames.append(graphs.frame_count)
        with model.fused("attention"), pytest.raises(SettingError, match="is fused"):
            before.run(forward, compiled, ids)

    assert [*frames, graphs.frame_count] == [2, 3, 3, 3, 3]  # unfused; then one for each fused mode
