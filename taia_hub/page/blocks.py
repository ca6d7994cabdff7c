"""The page: Gradio Blocks over `taia_hub.compare`."""

from __future__ import annotations

import html
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from taia_hub.common.imports import import_or_raise
from taia_hub.page import conversation
from taia_hub.page.answering import make_answer
from taia_hub.page.board import board_html, status_text
from taia_hub.page.callbacks import Callbacks, shown
from taia_hub.page.conversation import Turns
from taia_hub.page.examples import EXAMPLES
from taia_hub.page.models import Models
from taia_hub.page.questions import NAMES
from taia_hub.page.settings import MOST_COLUMNS, PageSettings
from taia_hub.page.votes import Votes
from taia_hub.switch.modes import canonical_mode

FEATURE = "The page"
_MODES = ("none", "attention", "all")
_ON_ITS_WAY = 0.3  # seconds in which the last state of a run that was ended arrives
_LINKED = ("prompt", "modes", "system", "temperature", "max_new_tokens", "seed")
_SAVE = """(text) => {
  if (!text) return;
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], {type: "text/plain;charset=utf-8"}));
  link.download = "FILE";
  link.click();
  URL.revokeObjectURL(link.href);
}"""
_COPY_LINK = """async (...values) => {
  const link = new URL(window.location.href.split("?")[0]);
  const asked = [...document.querySelectorAll("#taia-board .taia-prompt")].pop();
  if (!values[0].trim() && asked) values[0] = asked.textContent;
  NAMES.forEach((name, index) => { if (values[index] !== "") link.searchParams.set(name, String(values[index])); });
  window.history.replaceState(null, "", link);
  let said = "Copied the link.";
  try { await navigator.clipboard.writeText(link.toString()); }
  catch { said = "The browser did not let the link be copied: it stands in the address bar."; }
  return `<p class="taia-status" role="status">${said}</p>`;
}"""


def build_page(
    settings: PageSettings | None = None,
    *,
    token: str | None = None,
    trust_remote_code: bool = False,
    models: Models | None = None,
    modes: Sequence[str] = _MODES,
    examples: Sequence[str] = EXAMPLES,
) -> Any:
    """Builds the page on which one prompt is answered by several modes at once.

    Args:
        settings: The model and the limits; those of the environment by default.
        token: Access token, for private models and for votes that go to the Hub.
        trust_remote_code: Whether a base model's own code may run.
        models: Where models come from; by default they are loaded when they are first needed.
        modes: Mode names that are chosen at first.
        examples: Prompts to try.

    Returns:
        `gradio.Blocks`, ready for `launch_page`.

    Raises:
        MissingDependencyError: If Gradio is not installed.
        ConfigError: If a variable of the environment is wrong.
        RepositoryError: If votes cannot go where they should.
    """
    gr = import_or_raise("gradio", "space", FEATURE)
    settings = settings or PageSettings.from_environment()
    lent = token if settings.model_id else False  # visitors who name a model see what everybody may see
    models = models or Models(token=lent, dtype=settings.dtype, trust_remote_code=trust_remote_code)
    votes = Votes(settings.votes, settings.votes_dataset, token)
    callbacks = Callbacks(make_answer(models, settings), settings, votes, token)
    with gr.Blocks(title="TAIA, side by side", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        layout = _Layout(gr, settings, modes, examples)
        layout.wire(page, callbacks)
    page.queue(max_size=settings.queue_size, default_concurrency_limit=8)
    return page


class _Layout:
    """The controls of the page, and which reaction each one has."""

    def __init__(self, gr: Any, settings: PageSettings, modes: Sequence[str], examples: Sequence[str]) -> None:
        self.gr, self.settings = gr, settings
        where = f"Model: `{settings.model_id}`." if settings.model_id else "Name a TAIA repository below."
        gr.Markdown(
            f"# What fine-tuning changed, side by side\nOne prompt, an answer by each part of the update. {where}"
        )
        self.turns = gr.State((), time_to_live=3600)
        self.latest = gr.State([0], time_to_live=3600)  # number of the run that may still change the page
        self.model = gr.Textbox(
            label="Model",
            info="Hub id of a TAIA repository; @ and a revision may follow.",
            placeholder="org/model-taia",
            visible=settings.model_id is None,
            elem_id="taia-model",
        )
        with gr.Row():
            self.modes = gr.CheckboxGroup(
                [(name, mode) for mode, name in NAMES.items()],
                value=[canonical_mode(mode) for mode in modes],
                label="Columns",
                info=f"Two to {MOST_COLUMNS} of them stream at once.",
                elem_id="taia-modes",
                scale=3,
            )
            with gr.Column(scale=2, min_width=260):
                self.weighted = gr.Checkbox(label="One more column between TAIA and vanilla", elem_id="taia-weighted")
                self.weight = gr.Slider(
                    0,
                    1,
                    value=0.5,
                    step=0.05,
                    label="FFN weight",
                    info="0 is TAIA, 1 is vanilla.",
                    elem_id="taia-weight",
                )
        self.board = gr.HTML(board_html(()), elem_id="taia-board", apply_default_css=False)
        self.status = gr.HTML(_status(()), elem_id="taia-status", apply_default_css=False)
        self.prompt = gr.Textbox(
            label="Prompt",
            placeholder="Ask something; Enter sends, Shift and Enter begins a line.",
            lines=1,  # with more, Gradio sends at Shift and Enter
            max_lines=12,
            max_length=settings.max_prompt_characters,
            autofocus=settings.model_id is not None,
            elem_id="taia-prompt",
        )
        with gr.Row():
            self.run = gr.Button("Compare", variant="primary", elem_id="taia-run")
            self.stop = gr.Button("Stop", variant="stop", elem_id="taia-stop")
            self.clear = gr.Button("Clear", elem_id="taia-clear")
        gr.Examples([[example] for example in examples], inputs=[self.prompt], label="Examples")
        with gr.Row(elem_id="taia-vote-row"):
            self.choice = gr.Radio([], label="Which answer is better?", elem_id="taia-choice", scale=3)
            self.vote = gr.Button("Vote", interactive=False, elem_id="taia-vote", scale=1)
        place = html.escape(settings.votes_place)
        gr.HTML(
            f'<p class="taia-note">A vote keeps the prompt and the answers, in <code>{place}</code>.</p>',
            apply_default_css=False,
        )
        with gr.Accordion("Settings", open=False, elem_id="taia-settings"):
            with gr.Row():
                self.blind = gr.Checkbox(
                    label="Blind", info="Columns are shuffled and nameless until you vote.", elem_id="taia-blind"
                )
                self.against = gr.Dropdown(
                    [("nothing", ""), *((name, mode) for mode, name in NAMES.items())],
                    value="",
                    label="Show differences from",
                    elem_id="taia-against",
                )
            self.system = gr.Textbox(label="System prompt", lines=2, elem_id="taia-system")
            with gr.Row():
                self.temperature = gr.Slider(
                    0, 2, value=0, step=0.05, label="Temperature", info="0 is greedy.", elem_id="taia-temperature"
                )
                self.length = gr.Slider(
                    1,
                    settings.max_new_tokens,
                    value=min(128, settings.max_new_tokens),
                    step=1,
                    label="Longest answer, in tokens",
                    elem_id="taia-length",
                )
                self.seed = gr.Number(0, precision=0, minimum=0, label="Seed", elem_id="taia-seed")
        with gr.Row():
            self.json = gr.Button("Save as JSON", size="sm", elem_id="taia-json")
            self.markdown = gr.Button("Save as Markdown", size="sm", elem_id="taia-markdown")
            self.share = gr.Button("Copy a link to this prompt", size="sm", elem_id="taia-share")
        self.saved = gr.Textbox(visible=False)
        with gr.Accordion("Why: where the update lies", open=False, elem_id="taia-why") as self.why:
            self.figure = gr.Image(
                label="Norm of the update by layer and role",
                interactive=False,
                buttons=[],
                show_label=False,
                elem_id="taia-figure",
            )
            self.figure_text = gr.Markdown("", elem_id="taia-figure-text")

    def wire(self, page: Any, callbacks: Callbacks) -> None:
        """Says which reaction each control has."""
        gr, private = self.gr, {"api_visibility": "private", "show_progress": "hidden"}
        asked = [
            *(self.turns, self.model, self.prompt, self.modes, self.weighted, self.weight, self.system),
            *(self.temperature, self.length, self.seed, self.blind),
        ]
        views = [self.turns, self.board, self.status, self.choice, self.vote]

        @shown
        def ask(*values: Any) -> Iterator[list[Any]]:
            latest, *question, against = values
            latest[0] += 1
            number, begun = latest[0], False
            for turns in callbacks.ask(*question):
                if latest[0] != number:
                    return
                yield [*self.view(turns, against), gr.skip() if begun else ""]
                begun = True

        running = gr.on(
            [self.run.click, self.prompt.submit],
            ask,
            [self.latest, *asked, self.against],
            [*views, self.prompt],
            concurrency_limit=1,
            concurrency_id="model",
            **private,
        )

        def halt(latest: list[int]) -> None:
            latest[0] += 1

        def stopped(turns: Turns, against: str | None) -> list[Any]:
            time.sleep(_ON_ITS_WAY)
            return self.view(conversation.stop(turns), against)

        def cleared() -> list[Any]:
            time.sleep(_ON_ITS_WAY)
            return self.view((), None)

        quick = {"queue": False, **private}
        self.stop.click(halt, self.latest, None, cancels=[running], **quick).then(
            stopped, [self.turns, self.against], views, **quick
        )
        self.clear.click(halt, self.latest, None, cancels=[running], **quick).then(cleared, None, views, **quick)
        self.against.change(
            lambda turns, against: board_html(turns, against or None), [self.turns, self.against], self.board, **private
        )
        self.vote.click(
            shown(lambda turns, choice, against: self.view(callbacks.vote(turns, choice), against)),
            [self.turns, self.choice, self.against],
            views,
            **private,
        )
        for button, form, name in (
            (self.json, "json", "comparison.json"),
            (self.markdown, "markdown", "comparison.md"),
        ):
            button.click(
                shown(lambda turns, form=form: callbacks.download(turns, form)), self.turns, self.saved, **private
            ).success(None, self.saved, None, js=_SAVE.replace("FILE", name))
        linked = [self.prompt, self.modes, self.system, self.temperature, self.length, self.seed]
        self.share.click(None, linked, self.status, js=_COPY_LINK.replace("NAMES", json.dumps(_LINKED)))
        self.why.expand(shown(callbacks.figure), self.model, [self.figure, self.figure_text], api_visibility="private")

        def from_link(request: Any) -> list[Any]:
            return self.linked(dict(request.query_params))

        from_link.__annotations__["request"] = gr.Request  # Gradio goes by it
        page.load(from_link, None, linked, **private)
        gr.api(shown(callbacks.compare, as_html=False), api_name="compare", concurrency_limit=1, concurrency_id="model")

    def view(self, turns: Turns, against: str | None) -> list[Any]:
        """Returns what the page shows of a conversation, in the order of the outputs."""
        gr = self.gr
        names = turns[-1].names if turns else ()
        open_ = bool(turns) and not turns[-1].running and turns[-1].vote is None
        choices = [*((name, index) for index, name in enumerate(names)), ("All alike", -1)] if open_ else []
        return [
            turns,
            board_html(turns, against or None),
            _status(turns),
            gr.Radio(choices=choices, value=None),
            gr.Button(interactive=open_),
        ]

    def linked(self, values: Mapping[str, str]) -> list[Any]:
        """Reads what a link carries: the prompt and the settings of the page that it was copied from."""
        gr = self.gr
        given = map(canonical_mode, values.get("modes", "").split(","))
        modes = [mode for mode in dict.fromkeys(given) if mode in NAMES]
        ranges = {"temperature": (0, 2), "max_new_tokens": (1, self.settings.max_new_tokens), "seed": (0, 2**53)}
        numbers = []
        for name, (low, high) in ranges.items():
            try:
                number = float(values[name])
            except (KeyError, ValueError):
                number = math.nan
            whole = name == "temperature" or number.is_integer()
            numbers.append(number if low <= number <= high and whole else gr.skip())
        texts = [values.get(name) or gr.skip() for name in ("prompt", "system")]
        return [texts[0], modes or gr.skip(), texts[1], *numbers]


def _status(turns: Turns) -> str:
    return f'<p class="taia-status" role="status">{html.escape(status_text(turns))}</p>'
