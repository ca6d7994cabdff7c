"""From messages to tokens and labels: which tokens the loss covers, by the chat template."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from taia_hub.common.chat import (
    Messages,
    check_ids,
    ending_template,
    plain_messages,
    render,
    template_errors,
    tools_of,
)
from taia_hub.common.imports import import_or_raise
from taia_hub.common.labels import IGNORED_LABEL, Encoded
from taia_hub.common.progress import Progress
from taia_hub.errors import ConfigError

_PROBE = ({"role": "user", "content": "Yes?"}, {"role": "assistant", "content": "Yes"})


class Encoder:
    """Makes tokens of conversations, with labels for the assistant's messages only or for all.

    The answers are found in one of two ways, the first that the tokenizer allows: by the generation marks of the chat
    template, or of the one that TRL knows for it; or by rendering the conversation up to each answer, which must be the
    beginning of the whole. A message with `train` False is read and not trained on.

    `tokenizer` is the one that was given; where it has no chat template, or one that ends no answer, a copy whose
    template does, by the end-of-sequence token: it belongs to the trained model. `end` is the id of the token that ends
    an answer, or None where the template refuses to show it. `notes` say what was done for want of a template,
    for the user.

    Raises:
        ConfigError: If nothing could end an answer.

    Example:
        >>> Encoder(tokenizer).encode([{"role": "user", "content": "Hi"}])  # doctest: +SKIP
    """

    def __init__(self, tokenizer: Any, *, assistant_only: bool = True) -> None:
        self.assistant_only = assistant_only
        self.notes: tuple[str, ...] = ()
        plain = not tokenizer.chat_template
        with template_errors("every conversation"):  # as templates by names, of which none is the default
            self._take(ending_template(tokenizer, plain=True) if plain else tokenizer)
            self.end = self._find_end()
        if self.end is None and not plain and self._shows(_PROBE):
            self._take(ending_template(tokenizer, plain=False), mended=True)
            self.end = self._find_end()
            if self.end is None:
                raise ConfigError(
                    f"The chat template leaves out {tokenizer.eos_token} behind an answer, so none would ever end.",
                    "Let it write the end-of-sequence token, or another special token, behind each answer.",
                )
            self.notes += (f"The chat template ends no answer: {tokenizer.eos_token} is put behind each.",)
        if plain:
            self.notes += (
                "The tokenizer has no chat template: messages are joined by empty lines, and each answer ends with "
                f"{tokenizer.eos_token}.",
            )

    def _take(self, tokenizer: Any, *, mended: bool = False) -> None:
        self.tokenizer = tokenizer
        self._mended = mended
        self._marks = _marked_template(tokenizer)
        others = {tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id} - {tokenizer.eos_token_id}
        self._ends = {*tokenizer.added_tokens_decoder, *tokenizer.all_special_ids} - others
        self._endings = tuple(str(text) for text in tokenizer.convert_ids_to_tokens(sorted(self._ends)) if text)

    def encode(self, messages: Messages) -> Encoded:
        """Makes tokens and labels of a conversation.

        ConfigError if the template refuses it, blurs its answers, or leaves out reasoning or tools.
        """
        with template_errors(_quoted(messages)):
            self._check_rendered(messages)
            if not self.assistant_only and all(map(_is_trained, messages)):
                ids = self._apply(messages)["input_ids"]
                return Encoded(list(ids), list(ids))
            encoded = self._marked(messages) if self._marks and self.assistant_only else None
            return encoded or self._by_prefixes(messages, rest=not self.assistant_only)

    def _apply(self, messages: Messages, **options: Any) -> Any:
        turns, tools = plain_messages(messages), tools_of(messages)
        return self.tokenizer.apply_chat_template(turns, tools=tools, return_dict=True, **options)

    def _find_end(self) -> int | None:
        """Returns the id of the special or added token that ends the trained tokens of an answer; None without one."""
        if not self._shows(_PROBE):
            return None
        encoded = (self._marks and self._marked(_PROBE)) or self._by_prefixes(_PROBE, rest=False)
        trained = [one for one in encoded.labels if one != IGNORED_LABEL]
        return trained[-1] if trained and trained[-1] in self._ends else None

    def _shows(self, messages: Messages) -> bool:
        try:
            render(self.tokenizer, messages)
        except TemplateError:
            return False
        return True

    def _marked(self, messages: Messages) -> Encoded | None:
        """Goes by the template's marks; None where they do not tell which answer is which and one is left out."""
        found = self._apply(messages, chat_template=self._marks, return_assistant_tokens_mask=True)
        ids, mask = list(found["input_ids"]), found["assistant_masks"]
        starts = [at for at, one in enumerate(mask) if one and not (at and mask[at - 1])]
        spans = [(at, next((to for to in range(at, len(mask)) if not mask[to]), len(mask))) for at in starts]
        answers = [message for message in messages if message["role"] == "assistant"]
        if len(spans) != len(answers):
            if not all(map(_is_trained, answers)):
                return None
            answers = [{}] * len(spans)
        labels = [IGNORED_LABEL] * len(ids)
        for (start, stop), message in zip(spans, answers, strict=True):
            if _is_trained(message):
                kept = self.tokenizer.decode(ids[start:stop]).rstrip().endswith(self._endings)
                while kept and not self.tokenizer.decode(ids[stop - 1 : stop]).strip():
                    stop -= 1  # nothing is generated behind the end
                labels[start:stop] = ids[start:stop]
        return Encoded(ids, labels)

    def _by_prefixes(self, messages: Messages, *, rest: bool) -> Encoded:
        """Goes by what the template writes until each message that is trained, or not, unlike the `rest`."""
        whole, pieces, end = render(self.tokenizer, messages), list[tuple[str, bool]](), 0
        for index, message in enumerate(messages):
            is_answer = message["role"] == "assistant"
            trained = _is_trained(message) and (is_answer or rest)
            if trained == rest:
                continue
            before = render(self.tokenizer, messages[:index], ask=is_answer) if index else ""
            after = render(self.tokenizer, messages[: index + 1])
            if not (whole.startswith(after) and after.startswith(before)):
                raise ConfigError(
                    "The chat template writes a conversation in another way once it goes on, so the assistant's "
                    f"tokens cannot be told from the others in {_quoted(messages)}.",
                    "Put {% generation %} … {% endgeneration %} around the answers in the template, give the earlier "
                    'answers "train": false, or give assistant_only_loss: false.',
                )
            answer = whole[len(before) : len(after)]
            if is_answer and self._mended and (at := answer.rfind(self.tokenizer.eos_token)) >= 0:
                answer = answer[: at + len(self.tokenizer.eos_token)]  # nothing is generated behind the end
            elif answer.rstrip().endswith(self._endings):
                answer = answer.rstrip()
            pieces += [(whole[end : len(before)], rest), (answer, trained)]
            end = len(before) + len(answer)
        pieces.append((whole[end:], rest))
        return self._join(pieces)

    def _check_rendered(self, messages: Messages) -> None:
        """Refuses reasoning, thoughts within an answer, and tools that the template leaves out."""
        trained = [one for one in messages if one["role"] == "assistant" and _is_trained(one)]
        texts = [one["reasoning"] for one in trained if one.get("reasoning")]
        texts += [one["content"] for one in trained if "</think>" in one["content"]]
        tools = tools_of(messages) or []
        if not texts and not tools:
            return
        written = _squeezed(render(self.tokenizer, messages))
        if any(_squeezed(text) not in written for text in texts):
            raise ConfigError(
                f"The chat template leaves out reasoning of the assistant in {_quoted(messages)}.",
                "Leave it out of the data, train on one answer an item (many templates write the last reasoning only; "
                'give the earlier answers "train": false), or use a template that writes it.',
            )
        names = [str((tool.get("function") or tool).get("name")) for tool in tools]
        if any(name not in written for name in names):
            raise ConfigError(
                f"The chat template leaves out the tools ({', '.join(names)}) of {_quoted(messages)}.",
                "Leave 'tools' out of the data, or use a template that writes them.",
            )

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


def _is_trained(message: Mapping[str, Any]) -> bool:
    return message.get("train") is not False


def _squeezed(text: str) -> str:
    """Leaves out the blanks, which templates change."""
    return "".join(text.split())


def _quoted(messages: Messages) -> str:
    return f"a conversation that begins with {messages[0]['content'][:60]!r}"


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
    if template is None:
        return None
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
    vocabulary: int | None = None,
    progress: Progress | None = None,
) -> EncodedItems:
    """Makes tokens of all items, `messages` in rows, in their order; packing sorts by length in windows of 1,000 items.

    What is longer than `max_length` tokens is cut off, and items of which the loss would see nothing are left out. The
    tokens go into the folder `cache`: they may be more than fits into memory. ConfigError if an id is not below
    `vocabulary`, the number of the model's embeddings.
    """
    total, done = len(rows), [0]

    def encode(row: dict[str, Any]) -> dict[str, Any]:
        try:
            encoded = encoder.encode(row["messages"])
        except ConfigError as error:
            raise ConfigError(f"In the data '{row.get('source')}': {error.message}", error.hint) from error
        check_ids(encoder.tokenizer, encoded.input_ids, vocabulary)
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
        notes = [f"{note} The published model's template says so." for note in encoder.notes]
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
