"""The forms that training data comes in, told apart by their keys, and the one form that is trained on.

An item is trained on as `messages`: a list of turns with `role` and `content`, the system's first where there is one,
then the user's and the assistant's in turn, the assistant's last.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

from taia_hub.common.jsonl import LineError, get_text

Messages = list[dict[str, str]]


class Form(str, Enum):
    """A form of training data; the value is what it is called."""

    MESSAGES = "messages"
    SHAREGPT = "ShareGPT"
    ALPACA = "Alpaca"
    COMPLETION = "prompt and completion"


FORMS = (
    '{"instruction": …, ["input": …,] "output": …}, {"conversations": [{"from": "human"|"gpt"|"system", "value": …}]}, '
    '{"messages": [{"role": "user"|"assistant"|"system", "content": …}]} or {"prompt": …, "completion": …}'
)
"""What an item looks like, for hints."""

_KEYS = {
    Form.MESSAGES: ("messages",),
    Form.SHAREGPT: ("conversations",),
    Form.ALPACA: ("instruction", "output"),
    Form.COMPLETION: ("prompt", "completion"),
}
_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
}


def find_form(item: Mapping[str, Any]) -> Form:
    """Tells the one form whose keys an item has, or raises LineError; a key whose value is None counts as absent.

    Example:
        >>> find_form({"instruction": "Add 1 and 1.", "input": "", "output": "2"}).value
        'Alpaca'
    """
    keys = {key for key, value in item.items() if value is not None}
    whole = [form for form, needed in _KEYS.items() if keys.issuperset(needed)]
    if len(whole) == 1:
        return whole[0]
    if whole:
        named = " and ".join(form.value for form in whole)
        raise LineError(f"it has the keys of more than one form ({named}); which one is meant cannot be told")
    for needed in _KEYS.values():
        if len(missing := [key for key in needed if key not in keys]) < len(needed):
            raise LineError(f"'{missing[0]}' is missing")
    shown = ", ".join(f"'{key}'" for key in sorted(map(str, keys))[:8]) or "none"
    raise LineError(f"its keys are those of no known form: {shown}")


def to_messages(item: Mapping[str, Any], form: Form) -> Messages:
    r"""Converts an item to the form that is trained on; texts are kept as they are.

    Alpaca's `input` follows the `instruction` after an empty line; `system` and `history` (pairs of instruction and
    output) are used where they are there. `prompt` and `completion` may be texts or lists of turns. An empty system
    turn is left out. Every other key is passed over. LineError where a key is missing, a text is empty or no text of
    Unicode, or the roles are not in order.

    Example:
        >>> to_messages({"instruction": "Add.", "input": "1 and 1", "output": "2"}, Form.ALPACA)
        [{'role': 'user', 'content': 'Add.\n\n1 and 1'}, {'role': 'assistant', 'content': '2'}]
    """
    if form is Form.ALPACA:
        messages = _alpaca(item)
    elif form is Form.COMPLETION:
        prompt, completion = item.get("prompt"), item.get("completion")
        messages = _turns_or_text(prompt, "prompt", "user") + _turns_or_text(completion, "completion", "assistant")
    else:
        key = _KEYS[form][0]
        messages = _turns(item.get(key), key)
    if (system := get_text(dict(item), "system", False)).strip():
        if messages and messages[0]["role"] == "system":
            raise LineError("it has a system prompt in 'system' and another in its turns")
        messages.insert(0, {"role": "system", "content": system})
    _check_messages(messages)
    return messages


def _check_messages(messages: Messages) -> None:
    """Refuses turns that cannot be trained on: texts that are not there, roles out of order, no answer at the end."""
    if not any(message["role"] == "assistant" for message in messages):
        raise LineError("it has no turn of the assistant, so there is nothing to learn from it")
    start = int(messages[0]["role"] == "system")
    for number, message in enumerate(messages):
        due = "system" if number < start else ("user", "assistant")[(number - start) % 2]
        if message["role"] != due:
            raise LineError(f"turn {number + 1} is of the {message['role']} where one of the {due} is due")
        if not message["content"].strip():
            raise LineError(f"the text of turn {number + 1} ({message['role']}) is empty")
        try:
            message["content"].encode("utf-8")
        except UnicodeEncodeError as e:
            raise LineError(f"the text of turn {number + 1} ({message['role']}) is no Unicode: {e.reason}") from e
    if messages[-1]["role"] != "assistant":
        raise LineError("it ends with a turn of the user, which nobody answers")


def _alpaca(item: Mapping[str, Any]) -> Messages:
    texts = {key: get_text(dict(item), key, False) for key in ("instruction", "input")}
    output = get_text(dict(item), "output")
    prompt = "\n\n".join(text for text in texts.values() if text.strip())
    messages = []
    for number, pair in enumerate(item.get("history") or (), 1):
        if not isinstance(pair, list | tuple) or [type(text) for text in pair] != [str, str]:
            raise LineError(f"entry {number} of 'history' is {pair!r:.60}, and no pair of texts")
        messages += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    return [*messages, {"role": "user", "content": prompt}, {"role": "assistant", "content": output}]


def _turns_or_text(value: Any, key: str, role: str) -> Messages:
    if isinstance(value, list):
        return _turns(value, key)
    return [{"role": role, "content": get_text({key: value}, key)}]


def _turns(value: Any, key: str) -> Messages:
    if not isinstance(value, list):
        raise LineError(f"'{key}' is {value!r:.60}, and no list of turns")
    messages = [_turn(turn, number) for number, turn in enumerate(value, 1)]
    if messages and messages[0]["role"] == "system" and not messages[0]["content"].strip():
        return messages[1:]
    return messages


def _turn(turn: Any, number: int) -> dict[str, str]:
    if not isinstance(turn, dict):
        raise LineError(f"turn {number} is {turn!r:.60}, and no object")
    who, said = ("from", "value") if turn.get("from") is not None else ("role", "content")
    if turn.get("tool_calls") or turn.get("function_call"):
        raise LineError(f"turn {number} calls a tool; only texts can be trained on")
    for key in (who, said):
        if not isinstance(turn.get(key), str):
            missing = turn.get(key) is None
            reason = f"has no '{key}'" if missing else f"has {turn[key]!r:.60} as '{key}', which is no text"
            raise LineError(f"turn {number} {reason}")
    if turn[who] not in _ROLES:
        known = "human, gpt, system" if who == "from" else "user, assistant, system"
        raise LineError(f"turn {number} is of '{turn[who]}', which is none of {known}")
    return {"role": _ROLES[turn[who]], "content": turn[said]}
