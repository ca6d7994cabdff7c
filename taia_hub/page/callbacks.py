"""What the page does when a control is used: plain values in, plain values out; errors become messages on the page."""

from __future__ import annotations

import functools
import html
import inspect
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from taia_hub.cards.escaping import is_repo_id
from taia_hub.common.imports import import_or_raise
from taia_hub.errors import ConfigError, TAIAError
from taia_hub.page import conversation
from taia_hub.page.answering import Answer
from taia_hub.page.conversation import Turns
from taia_hub.page.questions import between, read_question
from taia_hub.page.settings import PageSettings
from taia_hub.page.votes import Votes
from taia_hub.switch.settings import parse_setting

F = TypeVar("F", bound=Callable[..., Any])


def shown(function: F, *, as_html: bool = True) -> F:
    """Makes our own errors messages on the page, which reads HTML; a bug stays a bug, and its text stays in the log."""

    def message(error: TAIAError) -> Exception:
        gradio = import_or_raise("gradio", "space", "The page")
        text = " ".join([error.message, *([error.hint] if error.hint else [])])
        made: Exception = gradio.Error(html.escape(text) if as_html else text, print_exception=False, duration=15)
        return made

    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def wrapped(*args: Any, **keywords: Any) -> Any:
            try:
                yield from function(*args, **keywords)
            except TAIAError as error:
                raise message(error) from error

    else:

        @functools.wraps(function)
        def wrapped(*args: Any, **keywords: Any) -> Any:
            try:
                return function(*args, **keywords)
            except TAIAError as error:
                raise message(error) from error

    return wrapped  # type: ignore[return-value]


class Callbacks:
    """The page's callbacks: an answer function of `make_answer`, the page's limits, where votes go, an access token."""

    def __init__(self, answer: Answer, settings: PageSettings, votes: Votes, token: str | None) -> None:
        self.answer, self.settings, self.votes, self.token = answer, settings, votes, token

    def repository(self, name: str | None) -> tuple[str, str | None]:
        """Returns the repository that answers and its revision or None: the page's own, or the one in the box.

        In the box, `@` and a revision may follow the Hub id.

        Raises:
            ConfigError: If neither names one, or another than the page's own is named.
        """
        if self.settings.model_id:
            if name and name != self.settings.model_id:
                raise ConfigError(f"This page answers by '{self.settings.model_id}' only.", "Leave the model out.")
            return self.settings.model_id, self.settings.revision
        if not name or not name.strip():
            raise ConfigError("No model was named.", "Write the Hub id of a TAIA repository, as in org/model-taia.")
        found, _, revision = name.strip().partition("@")
        if not is_repo_id(found) or "/" not in found or Path(found).exists():  # visitors see nothing of this disk
            raise ConfigError(
                f"'{found}' is no Hub id.", "Write the Hub id of a TAIA repository, as in org/model-taia."
            )
        return found, revision or None

    def ask(
        self,
        turns: Turns,
        name: str | None,
        prompt: str,
        modes: Sequence[str],
        with_weight: bool,
        weight: float,
        system: str,
        temperature: float,
        max_new_tokens: float,
        seed: float,
        blind: bool,
    ) -> Iterator[Turns]:
        """Answers what a user typed, with each mode's own conversation before it."""
        repository, revision = self.repository(name)
        settings = [parse_setting(mode) for mode in [*modes, *([between(weight)] if with_weight else [])]]
        question = read_question(
            self.settings,
            prompt=prompt,
            modes=[setting.value for setting in settings],
            system=system,
            histories=conversation.histories_of(turns, [setting.label for setting in settings]) if turns else None,
            temperature=temperature,
            max_new_tokens=max_new_tokens,
            seed=seed,
        )
        yield from conversation.ask(self.answer, repository, revision, turns, question, blind=blind)

    def vote(self, turns: Turns, choice: int | None) -> Turns:
        """Keeps a vote, and shows the columns' names."""
        voted = conversation.vote(turns, choice)
        self.votes.add(voted)
        return voted

    def download(self, turns: Turns, form: str) -> str:
        """Writes a conversation as `"json"` or `"markdown"`; refuses while names are hidden until the vote."""
        if not turns:
            raise ConfigError("There is nothing to save yet.", "Ask something first.")
        if any(turn.hidden for turn in turns):
            raise ConfigError("The answers' names are hidden until you vote.", "Vote first, then save.")
        comparisons = [turn.comparison for turn in turns]
        if form == "json":
            return json.dumps([one.to_json() for one in comparisons], indent=2, ensure_ascii=False)
        return "\n---\n\n".join(one.to_markdown() for one in comparisons)

    def figure(self, name: str | None) -> tuple[str, str]:
        """Draws the update of the model by layer, from its files alone.

        Returns the path of a PNG, and words for those who do not see it.
        """
        return _figure(*self.repository(name), self.token if self.settings.model_id else False)

    def compare(
        self,
        prompt: str,
        modes: list[Any] | None = None,
        ffn_weight: float | None = None,
        system: str = "",
        temperature: float = 0.0,
        max_new_tokens: int = 128,
        seed: int = 0,
        model: str = "",
    ) -> Iterator[dict[str, Any]]:
        """Answers a prompt by several modes of a TAIA model side by side, as JSON that grows.

        Args:
            prompt: The prompt.
            modes: Modes: none (base model), attention (TAIA), ffn (TAIF), all (vanilla), or mappings of roles to
                weights; none, attention and all by default.
            ffn_weight: Weight of the feed-forward update in one more column, from 0 (TAIA) to 1 (all updates).
            system: System message.
            temperature: 0 for greedy answers.
            max_new_tokens: Longest answer in tokens.
            seed: Seed of the sampling.
            model: Hub id of a TAIA repository, where the page has no model of its own.

        Yields:
            The comparison so far, as of `Comparison.to_json`; the last one is complete.
        """
        repository, revision = self.repository(model)
        question = read_question(
            self.settings,
            prompt=prompt,
            modes=["none", "attention", "all"] if modes is None else modes,
            ffn_weight=ffn_weight,
            system=system,
            temperature=temperature,
            max_new_tokens=max_new_tokens,
            seed=seed,
        )
        for comparison in self.answer(repository, revision, question):
            yield comparison.to_json()


@functools.lru_cache(maxsize=8)
def _figure(name: str, revision: str | None, token: str | bool | None) -> tuple[str, str]:
    from taia_hub.analysis.examining import examine
    from taia_hub.analysis.figures import draw_figures

    folder = Path(tempfile.mkdtemp(prefix="taia-figures-"))
    analysis = examine(name, revision=revision, token=token)
    drawn = draw_figures(folder, analysis)
    if not drawn:
        raise ConfigError(f"The update of '{name}' lies in no layer: there is nothing to draw.")
    return str(folder / "update_norms.png"), drawn[0].alt
