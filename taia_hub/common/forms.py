"""The forms that training data comes in, told apart by their keys, and the one form that is trained on.

An item is trained on as `messages`: a list of turns with `role` and `content`, the system's first where there is one,
then the user's and the assistant's in turn, the assistant's last. Where an item says so, a turn also has `train`
(False: it is read and not trained on) and `reasoning`, and the first one `tools` (JSON), for the chat template. What
asks for something else is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import Enum
from typing import Any

from taia_hub.common.jsonl import LineError, get_text

Messages = list[dict[str, Any]]


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
_CALLS = ("tool_calls", "function_call")
_REASONING = ("reasoning_content", "reasoning", "thinking")
_WANTED = ("label", "kto_tag")  # of KTO's data, which also holds answers that are to be avoided
_UNHEARD = {
    **dict.fromkeys(
        ("loss", "loss_weight", "loss_mask", "mask", "masked", "training", "train_on_turn", "trainable"),
        "say 'train': false or 'weight': 0 of a turn",
    ),
    **dict.fromkeys(
        ("train_detail", "training_detail", "completion_mask", "assistant_masks", "mask_history"),
        "whole turns are trained on or not, by 'train'",
    ),
    **dict.fromkeys(("image", "images", "audio", "audios", "video", "videos"), "only texts can be trained on"),
    "functions": "give them as 'tools'",
    "chat_template_kwargs": "the chat template gets messages and tools",
}
"""Keys of items and turns that ask for what is not done, and what to do."""
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
    turn is left out. A turn's `weight` (0 or 1) and `train` say whether it is trained on; `reasoning_content`,
    `reasoning` and `thinking` are the answer's; `tools` the item's. Every other key is passed over, but for those that
    ask for something else. LineError where a key is missing, a text is empty or no text of Unicode, or the roles are
    not in order.

    Example:
        >>> to_messages({"instruction": "Add.", "input": "1 and 1", "output": "2"}, Form.ALPACA)
        [{'role': 'user', 'content': 'Add.\n\n1 and 1'}, {'role': 'assistant', 'content': '2'}]
    """
    _refuse_unheard(item, "it")
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
    if said := _reasoning(item, "it"):
        if form in (Form.MESSAGES, Form.SHAREGPT) or messages[-1].get("reasoning"):
            raise LineError("it has reasoning outside its turns, of which each has its own")
        messages[-1]["reasoning"] = said
    for key in _WANTED:
        if item.get(key) is False or str(item.get(key)).lower() == "false":
            raise LineError(f"it says by '{key}' that its answer is not wanted; leave it out")
    if not _is_trained(item, "it"):
        raise LineError("it says that it is not to be trained on; leave it out")
    _check_messages(messages)
    if tools := _tools(item.get("tools")):
        messages[0]["tools"] = tools
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
    if not any(message["role"] == "assistant" and message.get("train", True) for message in messages):
        raise LineError("none of its answers is to be trained on")


def _refuse_unheard(values: Mapping[str, Any], whose: str) -> None:
    """Refuses keys that ask for what is not done: other names of weights, pictures, calls of tools."""
    for key in _CALLS:
        if values.get(key):
            raise LineError(f"{whose} calls a tool; only texts can be trained on")
    for key in _UNHEARD:
        if values.get(key) not in (None, [], {}, ""):
            raise LineError(f"{whose} has '{key}', which is not heard of: {_UNHEARD[key]}")


def _is_trained(values: Mapping[str, Any], whose: str) -> bool:
    """Tells what `weight` and `train` say, which are 0 or 1, and must not contradict each other."""
    found = dict[str, bool]()
    for key in ("weight", "train"):
        value = values.get(key)
        value = {"0": 0, "1": 1, "true": 1, "false": 0}.get(value.lower(), value) if isinstance(value, str) else value
        if value is not None and (not isinstance(value, (int, float)) or value not in (0, 1)):
            raise LineError(f"{whose} has {values[key]!r:.60} as '{key}'; it is 0 or 1, false or true")
        if value is not None:
            found[key] = bool(value)
    if len(set(found.values())) > 1:
        raise LineError(f"{whose} has a 'weight' and a 'train' that contradict each other")
    return all(found.values())


def _reasoning(values: Mapping[str, Any], whose: str) -> str:
    """Returns what an answer was reasoned by, under whichever name; empty where there is nothing."""
    found = {key: values[key] for key in _REASONING if values.get(key) not in (None, "")}
    for key, value in found.items():
        if not isinstance(value, str):
            raise LineError(f"{whose} has {value!r:.60} as '{key}', which is no text")
    if len(set(found.values())) > 1:
        raise LineError(f"{whose} has several texts of reasoning ({', '.join(found)}); which one is meant is not clear")
    return next(iter(found.values()), "")


def _tools(value: Any) -> str:
    """Returns the tools of an item as JSON; they are a list of functions, or the JSON of one; empty without any."""
    try:
        tools = json.loads(value) if isinstance(value, str) and value.strip() else value
        named = [(tool.get("function") or tool)["name"] for tool in tools or ()]
    except (ValueError, TypeError, AttributeError, KeyError) as e:
        raise LineError(f"'tools' is {value!r:.60}, and no list of functions with names") from e
    return json.dumps(tools) if named else ""


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


def _turn(turn: Any, number: int) -> dict[str, Any]:
    if not isinstance(turn, dict):
        raise LineError(f"turn {number} is {turn!r:.60}, and no object")
    who, said = ("from", "value") if turn.get("from") is not None else ("role", "content")
    _refuse_unheard(turn, f"turn {number}")
    for key in (who, said):
        if not isinstance(turn.get(key), str):
            missing = turn.get(key) is None
            reason = f"has no '{key}'" if missing else f"has {turn[key]!r:.60} as '{key}', which is no text"
            raise LineError(f"turn {number} {reason}")
    if turn[who] not in _ROLES:
        known = "human, gpt, system" if who == "from" else "user, assistant, system"
        raise LineError(f"turn {number} is of '{turn[who]}', which is none of {known}")
    role, reasoning = _ROLES[turn[who]], _reasoning(turn, f"turn {number}")
    message = {"role": role, "content": turn[said]}
    if not _is_trained(turn, f"turn {number}"):
        message["train"] = False
    elif role != "assistant" and (turn.get("train") or turn.get("weight")):
        raise LineError(f"turn {number} of the {role} is to be trained on; 'train' and 'weight' are of answers")
    if reasoning and role != "assistant":
        raise LineError(f"turn {number} of the {role} has reasoning, which is of answers")
    return message | ({"reasoning": reasoning} if reasoning else {})
