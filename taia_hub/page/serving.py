"""Starting the page: in a Space, on a server, on a laptop."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from taia_hub.common.imports import import_or_raise
from taia_hub.common.ports import check_port
from taia_hub.errors import ConfigError
from taia_hub.page.blocks import FEATURE, build_page
from taia_hub.page.examples import card_examples
from taia_hub.page.models import Models
from taia_hub.page.settings import PageSettings

_STYLE = Path(__file__).with_name("style.css")


def launch_page(
    repo: str | None = None,
    *,
    revision: str | None = None,
    token: str | None = None,
    trust_remote_code: bool = False,
    device: str | None = None,
    settings: PageSettings | None = None,
    modes: Sequence[str] | None = None,
    examples: Sequence[str] | None = None,
    port: int | None = None,
    share: bool = False,
    block: bool = True,
    page: Any = None,
    on_load: Callable[[Any], object] | None = None,
    **options: Any,
) -> Any:
    """Starts the page on which one prompt is answered by several modes at once.

    Args:
        repo: Hub id or folder of the TAIA repository; None for that of the environment, or a box on the page.
        revision: Its revision.
        token: Access token.
        trust_remote_code: Whether a base model's own code may run.
        device: Where the model goes, as in `"cpu"` or `"cuda:1"`; a GPU by default, where there is one.
        settings: Limits; those of the environment by default.
        modes: Mode names that are chosen at first.
        examples: Prompts to try; by default those of the model's card.
        port: Port; a free one from 7860 by default.
        share: Whether Gradio makes a public link.
        block: Whether the call returns only when the page ends.
        page: A page of `build_page` to start instead of a new one.
        on_load: Called with every model that was loaded.
        **options: More keywords of Gradio's `launch`.

    Returns:
        The running `gradio.Blocks`; `local_url` says where, `close()` ends it.

    Raises:
        TAIAError: As of `build_page`, or if nothing can listen on the port, or the model cannot be loaded.

    Example:
        ```python
        page = launch_page("org/model-taia", block=False)
        print(page.local_url)
        ```
    """
    gr = import_or_raise("gradio", "space", FEATURE)
    if wanted := port or os.environ.get("GRADIO_SERVER_PORT"):  # said before a model is loaded
        host = options.get("server_name") or os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1")
        if not str(wanted).isdecimal() or int(wanted) > 65535:
            raise ConfigError(f"{wanted!r} is no port.", "Give a number up to 65535, by GRADIO_SERVER_PORT or `port`.")
        check_port(host, int(wanted), "GRADIO_SERVER_NAME")
    if page is None:
        settings = settings or PageSettings.from_environment()
        if repo is not None:
            settings = dataclasses.replace(settings, model_id=repo, revision=revision)
        models = Models(
            token=token if settings.model_id else False,
            dtype=settings.dtype,
            device=device,
            trust_remote_code=trust_remote_code,
            on_load=on_load,
        )
        if settings.model_id:  # what is wrong with it is said before the page opens
            models.get(settings.model_id, settings.revision)
            examples = examples or card_examples(settings.model_id, settings.revision, token)
        keywords: dict[str, Any] = {name: value for name, value in (("modes", modes), ("examples", examples)) if value}
        page = build_page(settings, token=token, models=models, **keywords)
    page.launch(
        server_port=port,
        share=share,
        prevent_thread_lock=not block,
        css_paths=[_STYLE],
        theme=_theme(gr),
        footer_links=["api", "settings"],
        **options,
    )
    return page


def _theme(gr: Any) -> Any:
    """Gradio's theme with colours that can be read: at least 4.5 to 1 for small text, in light and dark."""
    colours = {
        "body_text_color_subdued": ("neutral_600", "neutral_300"),
        "block_info_text_color": ("neutral_600", "neutral_300"),
        "input_placeholder_color": ("neutral_500", "neutral_400"),
        "button_primary_background_fill": ("primary_700", "primary_700"),
        "button_primary_background_fill_hover": ("primary_800", None),
        "button_cancel_background_fill": ("neutral_200", "neutral_700"),
        "button_cancel_text_color": ("neutral_900", "neutral_50"),
    }
    both = {name: f"*{light}" for name, (light, _) in colours.items()}
    both |= {f"{name}_dark": f"*{dark}" for name, (_, dark) in colours.items() if dark}
    return gr.themes.Default(primary_hue="blue", neutral_hue="slate").set(**both)
