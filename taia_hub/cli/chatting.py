"""`taia chat`: a conversation in the terminal, and the commands in it."""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from taia_hub.cli.compare_output import show_answers, write_result
from taia_hub.cli.options import EXTRAPOLATES, options_of, taken
from taia_hub.cli.printing import echo
from taia_hub.cli.shared import Answering, Loading, Update, load_model, modes, read_answering
from taia_hub.errors import ConfigError, TAIAError, closest

if TYPE_CHECKING:
    from taia_hub.compare.chatting import Conversation

_COMMANDS = {
    "/mode": ("[MODE]", 'show or change the mode, as in /mode all or /mode {"attention": 1, "ffn": 0.5}'),
    "/compare": ("[TEXT]", "the answers of all modes side by side to a text, or to the last one again"),
    "/retry": ("", "answer the last text again"),
    "/undo": ("", "forget the last text and its answer"),
    "/clear": ("", "begin anew; the system message stays"),
    "/system": ("[TEXT]", "show or change the system message; - for none"),
    "/set": ("[NAME VALUE]", "show or change temperature, top-p, top-k, max-new-tokens or seed; off for none"),
    "/save": ("FILE", "write the conversation, as JSON if the name ends in .json, else as Markdown"),
    "/help": ("", "this list"),
    "/exit": ("", "leave, as Ctrl-D does"),
}
_INPUT = "A backslash at the end of a line goes on in the next one; a text that begins with a slash begins with two."


@options_of(Loading)
@options_of(Answering)
def chat(
    repo: Update,
    mode: Annotated[list[str] | None, modes("the repository's own", "one")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 512,
    **fields: Any,
) -> None:
    """Talk with a model, and change its mode in mid-talk.

    /mode all goes on with the vanilla fine-tune, /mode none with the base model; /compare puts the answers of all modes
    side by side; /help lists the rest. Ctrl-C stops an answer, twice it leaves. Where standard input is no terminal,
    its lines are what is said.

    taia chat org/model-taia --mode attention

    taia chat somebody/lora --system "Answer in one sentence." --temperature 0.7
    """
    from taia_hub.compare.chatting import Conversation
    from taia_hub.switch.settings import parse_setting

    if mode and len(mode) > 1:
        raise ConfigError(f"--mode came {len(mode)} times, and a talk begins in one.", "/compare shows several.")
    wanted = parse_setting(mode[0]) if mode else None
    answering = taken(Answering, fields)
    read_answering(**answering)
    options = {name: answering[name] for name in ("temperature", "top_p", "top_k", "seed")}
    model, tokenizer = load_model(repo, **fields)
    setting = wanted or parse_setting(model.inference_modules)
    talk = Conversation(model, tokenizer, setting, answering["system"] or None, not answering["raw"])
    talk.switch(setting)
    _Session(repo, talk, {**options, "max_new_tokens": max_new_tokens}).run()


class _Leave(Exception):
    """Ends the talk."""


class _Session:
    """A talk at the keyboard, or by the lines of a file: what is read, what is said, and what commands do."""

    def __init__(self, name: str, talk: Conversation, options: dict[str, Any]) -> None:
        self.name, self.talk, self.options = name, talk, options
        self.at_keyboard = sys.stdin.isatty() and sys.stdout.isatty()
        self.asked = 0  # so that another answer is drawn each time
        self.noted: set[str] = set()
        self.saved: set[Path] = set()

    def run(self) -> None:
        from taia_hub.switch.modes import mode_title

        if self.at_keyboard:
            with contextlib.suppress(ImportError):  # editing and history, where Python has them
                import readline  # noqa: F401
        say(f"{self.name} in mode {mode_title(self.talk.label)}. /help lists the commands, /exit or Ctrl-D leaves.")
        if self.talk.chat and not self.talk.tokenizer.chat_template:
            say("The model has no chat template: the texts are taken as they are, one after the other.")
        stopped = False
        while True:
            try:
                text = self.read()
                if text.strip():
                    stopped = self.handle(text)
                    if stopped:
                        say("Stopped; Ctrl-C again leaves.")
            except KeyboardInterrupt as error:
                if stopped or isinstance(error.__context__, KeyboardInterrupt):
                    return
                say("\nCtrl-C again, /exit or Ctrl-D leaves.")
                stopped = True
            except (EOFError, _Leave):
                return
            except TAIAError as error:
                stopped = False
                say(f"Error: {error.message}" + (f"\nHint: {error.hint}" if error.hint else ""))

    def read(self) -> str:
        """Reads what is said, with the lines that a backslash adds; EOFError at the end of the input."""
        lines: list[str] = []
        while not lines or lines[-1].endswith("\\"):
            try:
                lines.append(self.read_line("... " if lines else f"{self.talk.label}> "))
            except EOFError:
                if not lines:
                    if self.at_keyboard:
                        say("")
                    raise
                break
        return "\n".join(line.removesuffix("\\") for line in lines)

    def read_line(self, prompt: str) -> str:
        try:
            line = input(prompt) if self.at_keyboard else sys.stdin.readline()
            line.encode()
        except UnicodeError as error:
            raise ConfigError("The text is not UTF-8.", "Convert it, as with iconv.") from error
        if not line and not self.at_keyboard:
            raise EOFError
        return line.removesuffix("\n").removesuffix("\r")

    def handle(self, text: str) -> bool:
        """Answers a text or runs a command; returns whether Ctrl-C stopped an answer."""
        text = text.strip()
        if not text.startswith("/") or text.startswith("//"):
            return self.ask(text.removeprefix("/") if text.startswith("//") else text)
        name, *rest = text.split(maxsplit=1)
        if name == "/quit":
            name = "/exit"
        if name not in _COMMANDS:
            raise ConfigError(
                f"The command '{name}' is not known.{closest(name, _COMMANDS)}",
                "/help lists them; a text that begins with a slash begins with two.",
            )
        if rest and not _COMMANDS[name][0]:
            raise ConfigError(f"{name} takes nothing behind it.", "Leave it out.")
        run: Callable[..., bool | None] = getattr(self, f"do_{name[1:]}")
        return bool(run("".join(rest)) if _COMMANDS[name][0] else run())

    def ask(self, prompt: str) -> bool:
        from taia_hub.compare.chatting import Turn

        left_out = self.left_out(prompt)
        states = self.talk.stream(prompt, left_out=left_out, **self.how())  # refused here, nothing is forgotten
        if dropped := left_out - self.talk.forgotten:
            turns = "turn is" if dropped == 1 else f"{dropped} turns are"
            say(f"The context is full: the oldest {turns} no longer read. /clear begins anew.")
        self.talk.forgotten = left_out
        state, stopped = show_answers(states, 1)
        if state:
            (answer,) = state.answers
            self.talk.turns.append(Turn(prompt, answer.text, answer.mode, answer.finished == "stop"))
            self.note(*state.notes)
            if not answer.text.strip() and not stopped:
                say("The answer is empty.")
            if answer.finished == "length":
                say(f"The answer was cut after {len(answer.tokens):,} tokens: /set max-new-tokens for more.")
        return stopped

    def left_out(self, prompt: str) -> int:
        """Returns how many turns are not read for a prompt."""
        return self.talk.left_out(prompt, self.options["max_new_tokens"])

    def how(self) -> dict[str, Any]:
        """Returns the keywords of the next answer."""
        self.asked += 1
        options = {**self.options, "seed": self.options["seed"] + self.asked - 1}
        if not options["temperature"]:
            options |= {"top_p": None, "top_k": None}
        found = read_answering(system=None, raw=False, **options)
        return {name: value for name, value in found.items() if name not in ("system", "chat")}

    def note(self, *notes: str) -> None:
        """Says each note once in a talk; that there is no chat template was said."""
        for note in notes:
            if note not in self.noted and "chat template" not in note:
                say(note)
                self.noted.add(note)

    def do_mode(self, text: str) -> None:
        from taia_hub.switch.modes import MODES, mode_title
        from taia_hub.switch.settings import parse_text

        if text:
            self.talk.switch(parse_text(text, allow_extrapolation=EXTRAPOLATES.get()).value)
            say(f"Now in mode {mode_title(self.talk.label)}.")
        else:
            say(f"In mode {mode_title(self.talk.label)}; there are {', '.join(map(mode_title, MODES))}.")

    def do_compare(self, text: str) -> bool:
        from taia_hub.switch.modes import PAPER_NAMES

        turns = None if text else len(self.talk.turns) - 1
        prompt = text or self.last().prompt
        wanted: dict[str, Any] = {mode: mode for mode in ("none", "attention", "ffn", "all")}
        if self.talk.label not in PAPER_NAMES:
            wanted[self.talk.label] = self.talk.setting
        left_out = self.left_out(text) if text else None
        states = self.talk.stream(prompt, list(wanted.values()), turns=turns, left_out=left_out, **self.how())
        state, stopped = show_answers(states, len(wanted))
        self.note(*(state.notes if state else ()))
        return stopped

    def do_retry(self) -> bool:
        turn = self.last()
        self.talk.turns.pop()
        try:
            stopped = self.ask(turn.prompt)
        finally:
            if not self.talk.turns or self.talk.turns[-1].prompt is not turn.prompt:
                self.talk.turns.append(turn)  # no answer came
        return stopped

    def do_undo(self) -> None:
        turn = self.last()
        self.talk.turns.pop()
        self.talk.forgotten = min(self.talk.forgotten, len(self.talk.turns))
        say(f"Forgot: {' '.join(turn.prompt.split())[:60]}")

    def do_clear(self) -> None:
        self.talk.turns.clear()
        self.talk.forgotten = 0
        say("The conversation begins anew.")

    def do_system(self, text: str) -> None:
        if text:
            self.talk.system = None if text == "-" else text
        say(f"System message: {self.talk.system}" if self.talk.system else "There is no system message.")

    def do_set(self, text: str) -> None:
        if text:
            name, _, value = text.replace("=", " ", 1).partition(" ")
            name = name.replace("-", "_")
            if name not in _OPTIONS:
                names = [one.replace("_", "-") for one in _OPTIONS]
                given = name.replace("_", "-")
                raise ConfigError(f"'{given}' cannot be set.{closest(given, names)}", f"Choose {', '.join(names)}.")
            self.options[name] = _read_option(name, value.strip())
            self.asked = 0 if name == "seed" else self.asked
            if name in ("top_p", "top_k") and not self.options["temperature"]:
                say("It acts with a temperature above 0.")
        shown = ("off" if self.options[name] is None else self.options[name] for name in _OPTIONS)
        say(", ".join(f"{name.replace('_', '-')} {value}" for name, value in zip(_OPTIONS, shown, strict=True)))

    def do_save(self, text: str) -> None:
        from taia_hub.compare.keeping import check_out

        if not text:
            raise ConfigError("There is no file to save to.", "As in /save talk.md or /save talk.json.")
        path = Path(text).expanduser()
        check_out(path)
        if path.resolve() not in self.saved and path.exists():
            raise ConfigError(f"'{path}' is there already.", "Choose another name.")
        write_result(path, self.written(path))
        self.saved.add(path.resolve())

    def written(self, path: Path) -> str:
        """Writes the conversation in the format of a file's name."""
        from taia_hub.compare.showing import fenced
        from taia_hub.compare.terminal import safe_text
        from taia_hub.switch.modes import mode_title

        said = self.talk.to_json()
        if path.suffix.lower() == ".json":
            return json.dumps({"model": self.name, "options": self.options, **said}, indent=2) + "\n"
        titles = iter(said["modes"])
        lines = [f"# {self.name}", ""]
        for message in said["messages"]:
            title = mode_title(next(titles)) if message["role"] == "assistant" else message["role"].capitalize()
            lines += [f"**{title}**", "", fenced(safe_text(message["content"])), ""]
        return "\n".join(lines)

    def do_help(self) -> None:
        words = {f"{name} {more}".strip(): text for name, (more, text) in _COMMANDS.items()}
        width = max(map(len, words))
        say("\n".join([*(f"{usage:<{width}}  {text}" for usage, text in words.items()), "", _INPUT]))

    def do_exit(self) -> None:
        raise _Leave

    def last(self) -> Any:
        """Returns the last turn."""
        if not self.talk.turns:
            raise ConfigError("Nothing was said yet.", "Write a text first.")
        return self.talk.turns[-1]


def say(text: str) -> None:
    """Writes what is no answer, on standard error."""
    echo(text, err=True)


_OPTIONS: dict[str, tuple[type, Callable[[Any], bool], str]] = {
    "temperature": (float, lambda value: value >= 0 and math.isfinite(value), "0 (greedy) or more"),
    "top_p": (float, lambda value: 0 < value <= 1, "above 0 and at most 1, or off"),
    "top_k": (int, lambda value: value >= 1, "a whole number from 1 up, or off"),
    "max_new_tokens": (int, lambda value: value >= 1, "a whole number from 1 up"),
    "seed": (int, lambda value: 0 <= value < 2**62, "a whole number from 0 up"),
}
"""Name to the type of a value, whether it is allowed, and what is."""


def _read_option(name: str, text: str) -> Any:
    kind, allowed, what = _OPTIONS[name]
    if text == "off" and name in ("top_p", "top_k"):
        return None
    try:
        value = kind(text)
    except ValueError:
        value = math.nan
    if not allowed(value):
        raise ConfigError(f"{name.replace('_', '-')} cannot be '{text}'.", f"Give {what}.")
    return value
