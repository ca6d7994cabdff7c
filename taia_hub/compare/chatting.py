"""A conversation with one model whose mode may change from turn to turn."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from taia_hub.common.chat import chat_tokens
from taia_hub.compare.comparison import Comparison
from taia_hub.compare.prompting import context_length, read_messages
from taia_hub.compare.streaming import stream_compare
from taia_hub.switch.settings import Setting

_SHARE_OF_ANSWER = 4  # the answer may take at least one part in so many of the context


@dataclass(frozen=True)
class Turn:
    """What a user said, the answer, the label of the mode that gave it, and whether it came to its end."""

    prompt: str
    answer: str
    mode: str
    whole: bool = True

    @property
    def messages(self) -> tuple[Mapping[str, str], Mapping[str, str]]:
        """The two messages of the chat template."""
        return {"role": "user", "content": self.prompt}, {"role": "assistant", "content": self.answer}


@dataclass
class Conversation:
    """A conversation that goes on under any setting.

    Attributes:
        model: A TAIA language model; its own setting stays as it is.
        tokenizer: Its tokenizer.
        setting: The setting of the next answer; `switch` changes it.
        system: Text of a system message, or None.
        chat: Whether the chat template is applied, where there is one.
        turns: What was said, the oldest first.
        forgotten: Number of turns at the beginning that the model no longer reads.
    """

    model: Any
    tokenizer: Any
    setting: Setting
    system: str | None = None
    chat: bool = True
    turns: list[Turn] = field(default_factory=list)
    forgotten: int = 0

    @property
    def label(self) -> str:
        """Label of the mode of the next answer."""
        return self.setting.label

    def switch(self, mode: Any) -> None:
        """Lets the next answers come from another setting.

        Raises:
            SettingError: If it is not understood, or cannot act on this model; nothing changes then.
        """
        self.setting = self.model._taia_switch.resolve(mode).settings[0]

    def left_out(self, prompt: str, max_new_tokens: int) -> int:
        """Returns how many of the oldest turns a prompt and its answer leave no room for in the context.

        Raises:
            ConfigError: If the chat template refuses the messages.
        """
        most, count = context_length(self.model), self.forgotten
        while most is not None and count < len(self.turns):
            tokens = chat_tokens(self.tokenizer, self.messages(prompt, left_out=count), chat=self.chat)
            if len(tokens) + min(max_new_tokens, most // _SHARE_OF_ANSWER) <= most:
                break
            count += 1
        return count

    def messages(
        self, prompt: str, turns: int | None = None, left_out: int | None = None
    ) -> tuple[Mapping[str, str], ...]:
        """Returns what the model reads for a prompt.

        It comes after the first `turns` turns, by default after all, of which the first `left_out` are not read, by
        default those that are forgotten.
        """
        said: list[Mapping[str, str]] = []
        for turn in self.turns[self.forgotten if left_out is None else left_out : turns]:
            said += turn.messages
        return read_messages([*said, {"role": "user", "content": prompt}], self.system)

    def stream(
        self,
        prompt: str,
        modes: Sequence[Any] = (),
        *,
        turns: int | None = None,
        left_out: int | None = None,
        **options: Any,
    ) -> Generator[Comparison, None, None]:
        """Answers a prompt, which becomes no turn of its own accord.

        Args:
            prompt: What the user says.
            modes: Settings that answer side by side; by default the conversation's alone.
            turns: As of `messages`.
            left_out: As of `messages`.
            **options: Further keywords of `stream_compare`.

        Returns:
            The states of the comparison, as of `stream_compare`.

        Raises:
            TAIAError: As of `stream_compare`.
        """
        wanted = list(modes) or [self.setting]
        messages = self.messages(prompt, turns, left_out)
        return stream_compare(self.model, self.tokenizer, messages, wanted, chat=self.chat, measures=False, **options)

    def to_json(self) -> dict[str, Any]:
        """Returns the messages as JSON values, and the mode of each answer."""
        said: list[Mapping[str, str]] = [{"role": "system", "content": self.system}] if self.system else []
        for turn in self.turns:
            said += turn.messages
        return {"messages": said, "modes": [turn.mode for turn in self.turns]}
