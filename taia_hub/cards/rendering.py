"""Rendering of cards: values in, Markdown out. No network, no inference, no clock."""

from __future__ import annotations

import functools
import re
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jinja2
import yaml
from huggingface_hub import CardData

from taia_hub.cards import escaping, linking, metadata, snippets, tables
from taia_hub.cards.data import AnyCardData, MergedCardData, SpaceCardData
from taia_hub.cards.sections import assemble, key_hashes, stamp
from taia_hub.cards.tables import MODE_WORDS
from taia_hub.cards.tuning import tuned_words
from taia_hub.common.installing import install_command
from taia_hub.common.shipped import shipped
from taia_hub.errors import ConfigError, closest
from taia_hub.hub.config import PAPER
from taia_hub.results import summarise
from taia_hub.results.retained import HOLDOUT, RETENTION, is_retention
from taia_hub.results.tradeoff import Tradeoff
from taia_hub.switch.modes import MODES

VARIANTS = ("model_card", "short")
"""The templates for the card of a TAIA repository."""

ADAPTER = "adapter"
"""The template for what the card of a plain adapter says of its modes."""

PREFIX = "taia"
"""`{% extends "taia/model_card.md.j2" %}` in a user's template names ours, whatever the user's own are called."""

_SUFFIX = ".md.j2"
_KINDS: Mapping[type, tuple[tuple[str, ...], Callable[..., Any]]] = {
    MergedCardData: (("merged",), metadata.merged_metadata),
    SpaceCardData: (("space",), metadata.space_metadata),
}


def render_card(data: AnyCardData, template: str | None = None, template_dir: Path | None = None) -> str:
    """Renders a card.

    Args:
        data: What the card says.
        template: Name of the template, such as `"short"`; by default the one for this kind of data.
        template_dir: Folder of templates that come before ours. A file there replaces ours of the same name; with
            `{% extends "taia/model_card.md.j2" %}` it replaces single blocks.

    Returns:
        Markdown with the metadata block that the Hub reads, and marks that let a later call keep a person's edits.

    Raises:
        ConfigError: If the template does not exist, is broken or names an unknown variable; the message says the file
            and the line.
    """
    templates, make = _KINDS.get(type(data), (VARIANTS, metadata.model_metadata))
    name = template or templates[0]
    environment = environment_for(template_dir)
    if not environment.list_templates(filter_func=lambda found: found == name + _SUFFIX):
        raise ConfigError(
            f"There is no template '{name}'.{closest(name, templates)}",
            f"Choose one of {', '.join(templates)}, or put {name}{_SUFFIX} into a folder for --template-dir.",
        )
    body = _rendered(environment, name + _SUFFIX, {**_context(data), "card": data}, template_dir)
    return marked_card(make(data), body)


def marked_card(metadata: CardData, body: str) -> str:
    """Puts a card together, with the marks that let `merge_cards` keep a person's edits."""
    block = metadata.to_yaml()
    return assemble(block, key_hashes(yaml.safe_load(block) or {}), stamp(_tidied(body)))


def templates_dir() -> Path:
    """Returns the folder of the templates: `taia_hub/_templates` in a wheel, `templates/` in a checkout."""
    return shipped("templates", Path(__file__).parents[1])


def environment_for(template_dir: Path | None) -> jinja2.Environment:
    """Returns the environment that cards are rendered in.

    Raises:
        ConfigError: If there is no such folder.
    """
    if template_dir is not None and not template_dir.is_dir():
        raise ConfigError(f"The template folder '{template_dir}' does not exist.", "Give a folder with *.md.j2 files.")
    return _environment(template_dir, templates_dir())


@functools.cache
def _environment(template_dir: Path | None, own: Path) -> jinja2.Environment:
    """One for all cards of a process: a template is compiled once, and again when its file has changed."""
    ours = jinja2.FileSystemLoader(own)
    theirs = [jinja2.FileSystemLoader(template_dir)] if template_dir else []
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([*theirs, ours, jinja2.PrefixLoader({PREFIX: ours})]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    for name in ("text", "code", "link", "hub_link", "python", "shell", "number"):
        environment.filters["md" if name == "text" else name] = getattr(escaping, name)
    environment.filters["deeper"] = _deeper
    environment.filters["path"] = escaping.relative_path
    environment.filters["try_it"] = linking.try_it
    environment.filters["table"] = tables.name_table
    return environment


def _context(data: Any) -> dict[str, Any]:
    """Computes what the templates show, so that they hold words and no logic."""
    context: dict[str, Any] = {"paper": PAPER, "modes": MODES, "mode_words": MODE_WORDS, "install": install_command()}
    if isinstance(data, (MergedCardData, SpaceCardData)):
        return context
    results = data.results
    summary = summarise(results) if results is not None else None
    summary = summary if summary and summary.rows else None
    tuned = tuned_words(data)
    context |= {
        "tuned": tuned,
        "figures": tuple(one for one in data.figures if tuned is None or one not in tuned.figures),
        "summary": summary,
        **dict.fromkeys(("scores", "members", "differences", "measured", "choice", "traded", "wanted", "literal")),
        "facts": _evaluation_facts(results) if summary else {},
        "engines": snippets.engines(data),
        "evaluated": tuple(mode for mode in MODES if summary and mode in summary.modes),
    }
    if summary:
        traded = summary.traded
        apart = (HOLDOUT, RETENTION) if traded else ()
        rows = [row for row in summary.rows if row.key not in apart]  # those have a table of their own
        top, below = [row for row in rows if row.depth == 0], [row for row in rows if row.depth > 0]
        choice = None if tuned else tables.choice(summary)
        told = choice is not None and not choice.tells_nothing
        if not told and traded and traded.best:
            choice = None
        wanted = [] if tuned else _wanted(choice, traded)
        chosen = data.tuning.choice.label if tuned else choice.mode if choice and told else None
        context |= {
            "scores": tables.scores_table(top, summary.modes) if top else None,
            "members": tables.scores_table(below, summary.modes) if below else None,
            "differences": tables.differences_tables(top),
            "measured": tables.measured_table(summary.rows),
            "choice": choice,
            "traded": tables.traded(traded, chosen) if traded else None,
            "wanted": wanted,
            "literal": snippets.literal(_setting(results, wanted[0])) if wanted else None,
        }
    return context


def _wanted(choice: tables.Choice | None, traded: Tradeoff | None) -> list[str]:
    """Lists the modes that the results speak for, the first one before the others."""
    if choice is not None:
        return [] if choice.tells_nothing else [choice.mode, *choice.tied]
    return list(filter(None, dict.fromkeys([traded.recommended, traded.best] if traded else [])))


def _deeper(section: str) -> str:
    """Puts the headings of a section without code one level down."""
    return re.sub(r"^##", "###", section, flags=re.MULTILINE)


def _setting(results: Any, label: str) -> Any:
    """Finds what a user writes for the setting of a label."""
    return next(task.modes[label].setting for task in results.tasks.values() if label in task.modes)


def _evaluation_facts(results: Any) -> dict[str, Any]:
    """Says how it was evaluated, as far as the results file knows."""
    environment, settings = results.environment, results.settings
    versions, hardware = (
        found if isinstance(found := environment.get(name), Mapping) else {} for name in ("versions", "hardware")
    )
    harness = any(not (name == HOLDOUT or is_retention(name)) for name in results.tasks)  # it measures neither
    facts = {
        "lm_eval": versions.get("lm-eval") if harness else None,
        "transformers": versions.get("transformers"),
        "date": environment.get("date"),
        "dtype": results.model.dtype,
        "hardware": hardware.get("name") or hardware.get("device"),
        "limit": settings.get("limit"),
        "chat_template": settings.get("chat_template"),
    }
    return {name: value for name, value in facts.items() if value not in (None, "", False)}


def _rendered(environment: jinja2.Environment, name: str, context: Mapping[str, Any], template_dir: Path | None) -> str:
    try:
        template = environment.get_template(name)
        if template_dir is not None:
            _refuse_unknown_blocks(environment, name)
        return template.render(context)
    except RecursionError as error:
        raise ConfigError(
            f"The template '{name}' extends itself.", f'Extend ours by {{% extends "{PREFIX}/{name}" %}}.'
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"A template in '{template_dir}' is no UTF-8: {error}.", _AUTHOR) from error
    except jinja2.TemplateSyntaxError as error:
        where = f"{error.filename or error.name}:{error.lineno}"
        raise ConfigError(f"The template {where} is broken: {error.message}", _AUTHOR) from error
    except jinja2.TemplateNotFound as error:
        raise ConfigError(
            f"The template {_where(error, environment)} asks for '{error.name}', which does not exist.", _AUTHOR
        ) from error
    except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
        if template_dir is None:
            raise
        known = closest(match[1], context) if (match := re.match(r"'(\w+)' is undefined", str(error))) else ""
        raise ConfigError(f"The template {_where(error, environment)} fails: {error}.{known}", _AUTHOR) from error


def _refuse_unknown_blocks(environment: jinja2.Environment, name: str) -> None:
    """Refuses a block that ours does not have: it would replace nothing."""
    loader: Any = environment.loader
    source = loader.get_source(environment, name)[0]
    extended = re.search(rf"{{%-?\s*extends\s+[\"']{PREFIX}/([^\"']+)[\"']", source)
    if extended is None:
        return
    known = environment.get_template(f"{PREFIX}/{extended[1]}").blocks
    unknown = [block for block in re.findall(r"{%-?\s*block\s+(\w+)", source) if block not in known]
    if unknown:
        raise ConfigError(
            f"The template '{name}' has a block '{unknown[0]}', which {PREFIX}/{extended[1]} does not have."
            f"{closest(unknown[0], known)}",
            f"Its blocks are {', '.join(known)}.",
        )


_AUTHOR = "Mend the file, or leave --template-dir out; templates/ of taia-hub shows what a template may use."


def _where(error: Exception, environment: jinja2.Environment) -> str:
    """Finds file and line of a template in the traceback, which Jinja writes as if templates were Python."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.endswith(".j2")]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "(unknown)"


def _tidied(body: str) -> str:
    """Leaves one blank line where empty parts left more, and none at the ends; code stays as it is."""
    lines: list[str] = []
    fence = ""
    for line in body.split("\n"):
        if match := re.match(r"(`{3,}|~{3,})", line):
            fence = "" if fence and line.strip() == fence else fence or match[1]
        if fence or line.strip() or (lines and lines[-1].strip()):
            lines.append(line if fence else line.rstrip())
    return "\n".join(lines).strip("\n") + "\n"
