"""Blocks over a `yield`: in force for their generator alone, in every context and thread; nothing stays behind."""

import asyncio
import contextlib
import contextvars
import copy
import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.concurrency import iterate_in_threadpool, run_in_threadpool
from starlette.testclient import TestClient

from taia_hub.errors import SettingError
from taia_hub.switch.blocks import ACTIVE
from tests.conftest import logits


def mode(model):
    return model.status().inference_modules


def holding(model, setting):
    """A generator that holds a block over its yields, and tells which setting each step runs under."""
    with model.using(setting):
        while True:
            yield mode(model)


def assert_clean(model):
    assert mode(model) == "attention"
    assert not ACTIVE.get()
    assert not model._taia_switch.held


@pytest.fixture(scope="module")
def model(pico):
    return pico.taia("llama")


def test_a_generator_has_its_setting_and_its_caller_keeps_its_own(pico, model):
    ids = pico.ids()
    expected = {one: logits(model, ids, inference_modules=one) for one in ("none", "attention", "ffn", "all")}

    def stream():
        with model.using("none"):
            for _ in range(3):
                yield logits(model, ids)

    steps = stream()
    for _ in range(2):
        assert torch.equal(next(steps), expected["none"])
        assert torch.equal(logits(model, ids), expected["attention"])
        with model.using("all"):
            assert torch.equal(logits(model, ids), expected["all"])
            assert torch.equal(logits(model, ids, inference_modules="ffn"), expected["ffn"])
    with model.using("all"):
        assert torch.equal(next(steps), expected["none"])
    steps.close()
    assert_clean(model)


@pytest.mark.parametrize("closed_first", [0, 1])
def test_two_generators_end_in_any_order(model, closed_first):
    both = [holding(model, "ffn"), holding(model, "all")]
    assert [next(one) for one in both + both] == ["ffn", "all", "ffn", "all"]

    both[closed_first].close()
    assert next(both[1 - closed_first]) == ["ffn", "all"][1 - closed_first]
    assert mode(model) == "attention"
    both[1 - closed_first].close()

    assert_clean(model)


def test_a_generator_that_is_dropped_or_fails_leaves_nothing(model):
    def failing():
        with model.using("ffn"):
            yield mode(model)
            raise ZeroDivisionError

    next(holding(model, "none"))
    gc.collect()
    with pytest.raises(ZeroDivisionError):
        list(failing())

    assert_clean(model)


def test_every_step_of_a_plain_generator_in_threads_has_its_setting(pico, model):
    """As a server streams it: each step in some thread, in a copy of the task's context."""
    ids = pico.ids()
    expected = {one: logits(model, ids, inference_modules=one) for one in ("none", "ffn")}

    def stream(setting):
        with model.using(setting):
            for _ in range(4):
                yield torch.equal(logits(model, ids), expected[setting])

    async def collect(setting):
        return [right async for right in iterate_in_threadpool(stream(setting))]

    async def both():
        return await asyncio.gather(collect("none"), collect("ffn"))

    assert asyncio.run(both()) == [[True] * 4] * 2
    assert_clean(model)


def test_a_generator_stepped_in_several_contexts_may_end_in_another(model):
    contexts = [contextvars.copy_context() for _ in range(3)]
    steps = holding(model, "none")

    assert [context.run(next, steps) for context in contexts] == ["none"] * 3
    contexts[1].run(steps.close)

    assert [context.run(mode, model) for context in contexts] == ["attention"] * 3
    assert_clean(model)


def test_async_generators_have_their_settings_side_by_side(model):
    async def stream(setting):
        with model.using(setting):
            while True:
                await asyncio.sleep(0)
                yield mode(model)

    async def run():
        one, other = stream("none"), stream("all")
        seen = [await anext(stream_) for stream_ in (one, other, one)]
        with pytest.raises(SettingError, match=r"'stream' holds .* over a `yield`"):  # it may be handed on by it
            mode(model)
        await one.aclose()
        seen.append(await anext(other))
        await other.aclose()
        assert mode(model) == "attention"
        return seen

    assert asyncio.run(run()) == ["none", "all", "none", "all"]
    assert_clean(model)


def test_a_call_handed_to_another_thread_by_a_generator_raises(model):
    """In the thread's copy of the context nobody can tell it from a call beside the generator."""

    async def stream():
        with model.using("none"):
            yield await asyncio.to_thread(mode, model)

    async def run():
        await anext(stream())

    def plain():
        with model.using("none"):
            context, found = contextvars.copy_context(), []
            with contextlib.suppress(SettingError):
                thread = threading.Thread(target=lambda: found.append(context.run(attempt)))
                thread.start()
                thread.join()
            yield found[0]

    def attempt():
        try:
            return mode(model)
        except SettingError as error:
            return error

    with pytest.raises(SettingError, match="inference_modules"):
        asyncio.run(run())
    assert isinstance(next(plain()), SettingError)
    gc.collect()
    assert_clean(model)


def test_a_coroutine_hands_its_setting_on(model):
    async def run():
        with model.using("none"):
            return mode(model), await asyncio.to_thread(mode, model), await asyncio.create_task(later())

    async def later():
        return mode(model)

    assert asyncio.run(run()) == ("none", "none", "none")


def test_a_context_manager_made_of_a_generator_is_for_whoever_enters_it(model):
    @contextlib.contextmanager
    def inside():
        with model.using("none"), contextlib.ExitStack() as stack:
            stack.enter_context(model.using("ffn"))
            yield

    @contextlib.asynccontextmanager
    async def later():
        with inside():
            yield

    class Held:
        """A block with a name of its own."""

        def __enter__(self):
            self.block = inside()
            self.block.__enter__()

        def __exit__(self, *raised):
            return self.block.__exit__(*raised)

    def steps():
        with Held():
            yield mode(model)
            yield mode(model)

    async def run():
        async with later():
            return mode(model)

    with inside():
        assert mode(model) == "ffn"
    assert asyncio.run(run()) == "ffn"
    stream = steps()
    assert [next(stream), mode(model), next(stream)] == ["ffn", "attention", "ffn"]
    stream.close()
    assert_clean(model)


def test_a_block_that_a_server_enters_in_a_thread_of_its_own_is_refused(model):
    """As for a dependency that yields: the calls that follow are in other contexts, where it would not be in force."""

    @contextlib.contextmanager
    def dependency():
        with model.using("none"):
            yield model

    for enter in (dependency().__enter__, model.using("none").__enter__):
        with pytest.raises(SettingError, match="no call would be in it"):
            asyncio.run(run_in_threadpool(enter))
        with ThreadPoolExecutor() as pool, pytest.raises(SettingError, match="no call would be in it"):
            pool.submit(dependency().__enter__).result()
    assert asyncio.run(run_in_threadpool(lambda: next(holding(model, "none")))) == "none"
    gc.collect()
    assert_clean(model)


def test_a_block_of_a_servers_lifespan_is_refused(model):
    """No request is in it: each is a task of its own."""

    @contextlib.asynccontextmanager
    async def lifespan(app):
        with model.using("none"):
            yield

    for app in (Starlette(lifespan=lifespan), FastAPI(lifespan=lifespan)):
        with pytest.raises(SettingError, match="lifespan: no call would be in it"), TestClient(app):
            pass
    gc.collect()
    assert_clean(model)


@pytest.fixture
def in_mode_none(model):
    with model.using("none"):
        yield


def test_a_fixture_holds_a_block_for_its_test(model, in_mode_none):
    assert mode(model) == "none"


def test_blocks_inside_a_generator_nest(model):
    def one():
        with model.using("ffn"):
            yield mode(model)
            with model.using("all"):
                yield mode(model)
                yield from other()
            yield mode(model)

    def other():
        yield mode(model)
        with model.using("none"):
            yield from (mode(model) for _ in range(2))

    assert list(one()) == ["ffn", "all", "all", "none", "none", "ffn"]
    assert_clean(model)


def test_a_block_that_was_opened_by_hand_beside_a_generator_is_not_guessed(model):
    """A function that opened a block and returned: nobody can tell whether it was in the generator."""

    def opened(setting):
        block = model.using(setting)
        block.__enter__()
        return block

    def steps():
        with model.using("ffn"):
            block = opened("all")
            try:
                yield mode(model)
            finally:
                block.__exit__(None, None, None)

    with pytest.raises(SettingError, match="cannot be told"):
        next(steps())
    assert_clean(model)


def test_blocks_opened_by_hand_end_in_any_order(model):
    blocks = [model.using(one) for one in ("none", "ffn", "all")]
    for block in blocks:
        block.__enter__()

    blocks[1].__exit__(None, None, None)
    assert mode(model) == "all"
    blocks[2].__exit__(None, None, None)
    assert mode(model) == "none"
    blocks[0].__exit__(None, None, None)

    assert_clean(model)
    with pytest.raises(SettingError, match="twice"), blocks[0]:
        pass


def test_a_context_that_a_block_ended_outside_of_keeps_no_model(pico):
    model, context = pico.taia("llama"), contextvars.copy_context()
    block = model.using("none")
    context.run(block.__enter__)
    block.__exit__(None, None, None)
    gone = weakref.ref(model)

    del model, block
    gc.collect()

    assert gone() is None
    assert context.run(ACTIVE.get)


def test_a_block_decorates_what_runs_in_its_call_alone(model):
    assert model.using("none")(mode)(model) == "none"

    async def late(): ...

    for lazy in (holding, late):
        with pytest.raises(SettingError, match=r"runs after its call"):
            model.using("none")(lazy)

    class Steps:
        """What is called gives a generator."""

        def __call__(self):
            return holding(model, "all")

    async def stream():
        yield

    for lazy in (Steps(), lambda: Steps()(), lambda: late(), stream().__aiter__):
        with pytest.raises(SettingError, match=r"runs after its call"):
            model.using("none")(lazy)()
    assert_clean(model)


def test_a_copy_of_a_model_leaves_the_blocks_of_generators_behind(model):
    steps = holding(model, "all")
    next(steps)

    other = copy.deepcopy(model)

    assert mode(other) == "attention"
    steps.close()


def test_recomputation_in_a_generator_keeps_the_setting_of_its_forward(pico):
    model, ids = pico.taia("llama", is_trainable=True).train(), pico.ids()

    def gradient(held):
        model.zero_grad()
        with model.using("ffn"):
            loss = model(input_ids=ids, labels=ids).loss
        if held:
            with model.using("attention"):
                yield
        loss.backward()
        yield {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}

    plain = next(gradient(False))
    model.gradient_checkpointing_enable()
    steps = gradient(True)
    next(steps)
    again = next(steps)
    assert plain.keys() == again.keys()
    assert all(torch.equal(plain[name], again[name]) for name in plain)
