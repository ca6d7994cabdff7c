"""Blocks that put a setting in force: for a thread or task, or for one generator.

A block is an entry with an identity, and only its own end removes it: blocks may end in any order and in any thread.
Where a function opens it, it stands in a context variable, which threads and tasks each have. A generator has no
context of its own: it shares that of whoever steps it, and frameworks step one generator in many. A block that a
generator opens therefore belongs to the generator's frame, and is in force wherever that frame is on the stack. To
look along the stack takes microseconds, and is done only while some generator holds a block of this switch.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import sys
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from types import FrameType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from taia_hub.errors import SettingError

if TYPE_CHECKING:
    from taia_hub.switch.switch import Acting, Switch

T = TypeVar("T")

ACTIVE: ContextVar[Mapping[Switch, Block[Any]]] = ContextVar("taia_hub_settings", default={})  # noqa: B039 - never mutated
# ^ the innermost block of each switch, which knows those around it
_NUMBERS = itertools.count()
_ENTERS = ("__enter__", "__aenter__", "enter_context", "enter_async_context")
# ^ functions that open a block for whoever called them
_DRIVERS = ("contextlib", "_pytest.fixtures")
# ^ modules that run a generator for its `yield` in the middle: the block is for whoever uses it
_WORKERS = ("anyio", "asgiref", "asyncio", "concurrent", "starlette", "threading")
# ^ packages that call what they are given in another context, which nobody goes on in


class Block(Generic[T]):
    """A block of a `with` statement, or of a decorated function, in which a setting is in force.

    Args:
        switch: The switch.
        acting: What its layers obey in the block.
        value: What `with ... as` gives.
    """

    def __init__(self, switch: Switch, acting: Acting, value: T) -> None:
        self.switch, self.acting, self.value = switch, acting, value
        self.open = False
        self.frame: FrameType | None = None
        # ^ of the `with` statement
        self.outer: Block[Any] | None = None
        self.number = -1
        # ^ in the order in which blocks were entered

    def __enter__(self) -> T:
        """Puts the setting in force.

        Raises:
            SettingError: If the model is fused with another setting, the block was entered before, or it is entered in
                a context that nobody goes on in.
        """
        if self.number >= 0:
            raise SettingError("A block of a setting was entered twice.", "Make one for each: `model.using(mode)`.")
        self.switch.allowed(self.acting)
        frame = _owner(sys._getframe(1))
        if frame.f_globals.get("__name__", "").partition(".")[0] in _WORKERS:
            raise SettingError(
                "A block of a setting was entered for itself in a worker thread or a task, as servers do for "
                "dependencies that yield and for their lifespan: no call would be in it.",
                "Pass the keyword `inference_modules` to the calls, or open the block where they are.",
            )
        self.frame = frame
        self.number, self.open = next(_NUMBERS), True
        if _is_generator(frame):
            self.switch.held[frame] = (*self.switch.held.get(frame, ()), self)
        active = ACTIVE.get()
        self.outer = _innermost(active.get(self.switch))
        ACTIVE.set({**active, self.switch: self})
        return self.value

    def __exit__(self, *raised: object) -> None:
        """Ends the block, wherever that happens, and no other."""
        self.open, frame = False, self.frame
        self.frame = None  # it would keep the variables of the function alive
        self.__dict__.pop("value", None)  # and a context that is left elsewhere, which keeps the block, the model
        if frame is not None and frame in self.switch.held:
            if rest := tuple(block for block in self.switch.held[frame] if block is not self):
                self.switch.held[frame] = rest
            else:
                del self.switch.held[frame]
        active = dict(ACTIVE.get())
        if (first := active.pop(self.switch, None)) is not None:
            if (left := _innermost(first)) is not None:
                active[self.switch] = left
            ACTIVE.set(active)

    def __call__(self, function: Callable[..., Any]) -> Any:
        """Makes a function run in such a block at each of its calls.

        Raises:
            SettingError: If the function runs after its call; where only what it returns tells, at the call.
        """
        lazy = (inspect.isgeneratorfunction, inspect.isasyncgenfunction, inspect.iscoroutinefunction)
        if any(is_lazy(function) for is_lazy in lazy):
            raise _runs_later(function)

        @functools.wraps(function)
        def in_block(*args: Any, **kwargs: Any) -> Any:
            with Block(self.switch, self.acting, self.value):
                result = function(*args, **kwargs)
            if inspect.isasyncgen(result):
                raise _runs_later(function)
            if inspect.isgenerator(result) or inspect.iscoroutine(result):
                result.close()
                raise _runs_later(function)
            return result

        return in_block


def block_in_force(switch: Switch) -> Block[Any] | None:
    """Finds the block that is in force here: in this thread or task, in the generators that run now.

    Raises:
        SettingError: If a generator that is not running here holds a block that this call may be part of, so that
            nobody can tell which setting is meant.
    """
    first = _innermost(ACTIVE.get().get(switch))
    if not switch.held:
        return first
    plain = next((block for block in _outwards(first) if block.frame not in switch.held), None)
    inner: Block[Any] | None = None
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and (inner is None or plain is not None):
        if plain is not None and frame is plain.frame:
            return inner or plain
        if inner is None and (held := switch.held.get(frame)):
            inner = held[-1]
        frame = frame.f_back
    if inner is not None:
        if plain is not None and plain.number > inner.number:  # opened in it, by a function that returned, or outside
            raise _unclear(inner)
        return inner
    for block in _outwards(first):
        owner = block.frame
        if owner is None or owner not in switch.held:
            return block
        if owner.f_code.co_flags & inspect.CO_ASYNC_GENERATOR or _runs_elsewhere(owner):
            raise _unclear(block)
    return None


def _outwards(block: Block[Any] | None) -> Iterator[Block[Any]]:
    """Yields the open blocks from one outwards."""
    while (block := _innermost(block)) is not None:
        yield block
        block = block.outer


def _innermost(block: Block[Any] | None) -> Block[Any] | None:
    """Passes by the blocks that ended in another context than they began in."""
    while block is not None and not block.open:
        block = block.outer
    return block


def _owner(frame: FrameType) -> FrameType:
    """Finds the frame that a block is for: that of the `with` statement, through whatever opens it on its behalf."""
    while (caller := frame.f_back) is not None:
        driven = _is_generator(frame) and caller.f_globals.get("__name__") in _DRIVERS
        if not driven and frame.f_code.co_name not in _ENTERS:
            break
        frame = caller
    return frame


def _is_generator(frame: FrameType) -> bool:
    return bool(frame.f_code.co_flags & (inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR))


def _runs_elsewhere(frame: FrameType) -> bool:
    """Tells whether a generator is at work in another thread, which may have handed this call on."""
    for running in sys._current_frames().values():
        one: FrameType | None = running
        while one is not None:
            if one is frame:
                return True
            one = one.f_back
    return False


def _runs_later(function: Callable[..., Any]) -> SettingError:
    return SettingError(
        f"'{getattr(function, '__name__', type(function).__name__)}' runs after its call, when the block would have "
        "ended.",
        "Open the block inside the function: `with model.using(mode): ...`.",
    )


def _unclear(block: Block[Any]) -> SettingError:
    name = "" if block.frame is None else f" '{block.frame.f_code.co_name}'"
    return SettingError(
        f"The generator{name} holds a block of the setting '{block.acting.settings[0].value}' over a `yield`, and a "
        "call came beside it: whether it belongs to the block cannot be told.",
        "Pass the keyword `inference_modules` to each call of the generator, or end the block before it yields.",
    )
