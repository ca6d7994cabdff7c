"""Text of a growing row of tokens, at a cost a token that does not grow with the row."""

from __future__ import annotations

from typing import Any


class GrowingText:
    """The text of tokens that come one by one.

    A token alone is no text: it may hold part of a character, and its leading space depends on the token before. So
    a short window of tokens is decoded with and without the new ones, and the difference is appended.

    Args:
        tokenizer: The tokenizer.

    Example:
        ```python
        text = GrowingText(tokenizer)
        for token in tokens:
            text.append(token)
        text.value  # is tokenizer.decode(tokens, skip_special_tokens=True)
        ```
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.tokens: list[int] = []
        self.value = ""
        self._start = 0  # of the window
        self._shown = 0  # tokens whose text is in `value`

    def append(self, token: int) -> None:
        """Adds a token; an unfinished character waits for its other bytes."""
        self.tokens.append(token)
        before = self._decode(self.tokens[self._start : self._shown])
        now = self._decode(self.tokens[self._start :])
        if len(now) > len(before) and not now.endswith("\ufffd"):
            self.value += now[len(before) :]
            self._start, self._shown = self._shown, len(self.tokens)

    def finish(self) -> str:
        """Returns the text of all tokens, decoded at once."""
        self.value = self._decode(self.tokens)
        return self.value

    def _decode(self, tokens: list[int]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))
