"""From messages to tokens and labels: which tokens the loss covers, by the chat template."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taia_hub.common.chat import Messages, plain_messages, template_errors
from taia_hub.common.imports import import_or_raise
from taia_hub.common.progress import Progress
from taia_hub.errors import ConfigError

IGNORED_LABEL = -100
"""The label that the models of transformers leave out of the loss."""


@dataclass(frozen=True)
class Encoded:
    """A conversation as the model reads it; its labels are `IGNORED_LABEL` where the loss does not look."""

    input_ids: list[int]
    labels: list[int]


class Encoder:
    """Makes tokens of conversations, with labels for the assistant's messages only or for all.

    The answers are found in one of three ways, the first that the tokenizer allows: by the generation marks of the chat
    template, or of the one that TRL knows for it; by rendering the conversation up to each answer, which must be the
    beginning of the whole; and, without a chat template, in the plain form: the messages joined by empty lines, each
    answer ended by the end-of-sequence token, without which ConfigError is raised. `notes` are for the user.

    Example:
        >>> Encoder(tokenizer).encode([{"role": "user", "content": "Hi"}])  # doctest: +SKIP
    """

    def __init__(self, tokenizer: Any, *, assistant_only: bool = True) -> None:
        self.tokenizer = tokenizer
        self.assistant_only = assistant_only
        self.notes: tuple[str, ...] = ()
        self._template: str | None = None
        self._spans: Callable[[Messages], Encoded]
        if not tokenizer.chat_template:
            if tokenizer.eos_token_id is None:
                raise ConfigError(
                    "The tokenizer has no chat template and no end-of-sequence token, so no answer would ever end.",
                    "Give the base model one: tokenizer.eos_token = '</s>', and save it.",
                )
            self.notes = (
                "The tokenizer has no chat template: messages are joined by empty lines, and each answer ends with "
                f"{tokenizer.eos_token}.",
            )
            self._spans = self._plain
        elif not assistant_only:
            self._spans = self._whole
        else:
            self._template = _marked_template(tokenizer)
            self._spans = self._marked if self._template else self._by_prefixes

    def encode(self, messages: Messages) -> Encoded:
        """Makes tokens and labels of a conversation; ConfigError if the template refuses it or blurs its answers."""
        with template_errors(f"a conversation that begins with {messages[0]['content'][:60]!r}"):
            encoded = self._spans(messages)
        return encoded if self.assistant_only else Encoded(encoded.input_ids, list(encoded.input_ids))

    def _whole(self, messages: Messages) -> Encoded:
        ids = self.tokenizer.apply_chat_template(plain_messages(messages), return_dict=True)["input_ids"]
        return Encoded(list(ids), list(ids))

    def _marked(self, messages: Messages) -> Encoded:
        found = self.tokenizer.apply_chat_template(
            plain_messages(messages),
            chat_template=self._template,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        ids, mask = list(found["input_ids"]), found["assistant_masks"]
        return Encoded(ids, [one if trained else IGNORED_LABEL for one, trained in zip(ids, mask, strict=True)])

    def _by_prefixes(self, messages: Messages) -> Encoded:
        def render(count: int, *, ask: bool = False) -> str:
            turns = plain_messages(messages[:count])
            return str(self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=ask))

        whole, pieces, end = render(len(messages)), list[tuple[str, bool]](), 0
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before, after = render(index, ask=True), render(index + 1)
            if not (whole.startswith(after) and after.startswith(before)):
                raise ConfigError(
                    "The chat template writes a conversation in another way once it goes on, so the assistant's "
                    "tokens cannot be told from the others.",
                    "Put {% generation %} … {% endgeneration %} around the answers in the template, or give "
                    "assistant_only_loss: false.",
                )
            answer, ending = whole[len(before) : len(after)], self.tokenizer.eos_token
            if ending and answer.rstrip().endswith(ending):
                answer = answer.rstrip()  # nothing is generated after it
            pieces += [(whole[end : len(before)], False), (answer, True)]
            end = len(before) + len(answer)
        pieces.append((whole[end:], False))
        return self._join(pieces)

    def _plain(self, messages: Messages) -> Encoded:
        pieces = list[tuple[str, bool]]()
        for index, message in enumerate(messages):
            if index:
                pieces.append(("\n\n", False))
            answer = message["role"] == "assistant"
            pieces.append((message["content"] + (self.tokenizer.eos_token if answer else ""), answer))
        encoded = self._join(pieces)
        begin = self.tokenizer("")["input_ids"][:1]  # what this tokenizer puts before every text
        if begin and begin[0] == self.tokenizer.bos_token_id:
            return Encoded([*begin, *encoded.input_ids], [IGNORED_LABEL, *encoded.labels])
        return encoded

    def _join(self, pieces: Sequence[tuple[str, bool]]) -> Encoded:
        """Makes tokens of pieces so that each prompt has those that it has alone, as when an answer is generated."""
        merged = _merged(pieces)
        parts = [self._tokens(text) for _, text in merged]
        whole = self._tokens("".join(text for _, text in merged))
        ids = [one for part in parts for one in part]
        if ids != whole:  # some tokenizers put a space before every text, or join what is apart
            text, ends = "", list[int]()
            for _, piece in merged:
                text += piece
                tokens = self._tokens(text)
                if whole[: len(tokens)] != tokens:
                    break
                ends.append(len(tokens))
            else:
                parts = [whole[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]
        ids = [one for part in parts for one in part]
        trained = [is_trained for part, (is_trained, _) in zip(parts, merged, strict=True) for _ in part]
        return Encoded(ids, [one if seen else IGNORED_LABEL for one, seen in zip(ids, trained, strict=True)])

    def _tokens(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []


def _merged(pieces: Sequence[tuple[str, bool]]) -> list[tuple[bool, str]]:
    """Joins neighbours that are both trained or both not, so that tokens may reach across them."""
    merged = list[tuple[bool, str]]()
    for text, trained in pieces:
        if merged and merged[-1][0] == trained:
            merged[-1] = (trained, merged[-1][1] + text)
        else:
            merged.append((trained, text))
    return merged


def _marked_template(tokenizer: Any) -> str | None:
    """Returns a template with generation marks around answers and the token that ends them, or None."""
    utils = import_or_raise("trl.chat_template_utils", extra="train", feature="`taia train`")
    template = tokenizer.chat_template
    template = template.get("default") if isinstance(template, dict) else template
    if not utils.has_generation_markers(template):
        try:
            template = utils.get_training_chat_template(tokenizer)
        except ValueError:  # a template that TRL does not know
            return None
    if template is None or not tokenizer.is_fast:
        return None
    return str(template) if utils.is_chat_template_stop_token_trained(tokenizer, chat_template=template) else None


@dataclass(frozen=True)
class EncodedItems:
    """The items of a training in order, `input_ids`, `labels`, packed also `seq_lengths`; `lengths` are in tokens."""

    dataset: Any
    lengths: list[int]
    notes: tuple[str, ...]


def encode_items(
    rows: Any,
    encoder: Encoder,
    *,
    max_length: int,
    packing: bool,
    cache: Path,
    progress: Progress | None = None,
) -> EncodedItems:
    """Makes tokens of all items, `messages` in rows, in their order; packing sorts by length in windows of 1,000 items.

    What is longer than `max_length` tokens is cut off, and items of which the loss would see nothing are left out. The
    tokens go into the folder `cache`: they may be more than fits into memory.
    """
    total, done = len(rows), [0]

    def encode(row: dict[str, Any]) -> dict[str, Any]:
        encoded = encoder.encode(row["messages"])
        done[0] += 1
        if progress and (done[0] % 256 == 0 or done[0] == total):
            progress("tokens", done[0], total)
        length, labels = len(encoded.input_ids), encoded.labels[:max_length]
        # The first label has no token before it, so the loss never sees it.
        seen = any(label != IGNORED_LABEL for label in labels[1:])
        return {"input_ids": encoded.input_ids[:max_length], "labels": labels, "length": length, "seen": seen}

    datasets = import_or_raise("datasets", extra="train", feature="`taia train`")
    bars = datasets.utils.logging.is_progress_bar_enabled()
    datasets.utils.logging.disable_progress_bar()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        encoded = rows.map(
            encode,
            remove_columns=rows.column_names,
            cache_file_name=str(cache / f"tokens-{os.getpid()}.arrow"),
            load_from_cache_file=False,
            new_fingerprint=uuid.uuid4().hex[:16],
        )
        lengths, seen = list(encoded["length"]), list(encoded["seen"])
        kept = [index for index, one in enumerate(seen) if one]
        cut = sum(lengths[index] > max_length for index in kept)
        notes = list(encoder.notes)
        if cut:
            notes.append(f"{cut} of {total} items are longer than {max_length} tokens and were cut off.")
        if len(kept) < total:
            notes.append(
                f"{total - len(kept)} of {total} items were left out: no token of an answer is within {max_length} "
                "tokens."
            )
        dataset = encoded.select(kept).select_columns(["input_ids", "labels"])
        lengths = [min(lengths[index], max_length) for index in kept]
        if packing and kept:
            trl = import_or_raise("trl", extra="train", feature="`taia train`")
            dataset = trl.pack_dataset(
                dataset, max_length, "bfd", {"cache_file_name": str(cache / f"packed-{os.getpid()}.arrow")}
            )
            lengths = [len(ids) for ids in dataset["input_ids"]]
    finally:
        if bars:
            datasets.utils.logging.enable_progress_bar()
    return EncodedItems(dataset, lengths, tuple(notes))
