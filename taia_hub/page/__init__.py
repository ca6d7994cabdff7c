"""A page in the browser on which one prompt is answered by several modes at once: on a laptop and as a Space.

A `PageSettings` comes in, Gradio Blocks or a running server go out. It may import `compare` and what lies below.
"""

from taia_hub.page.blocks import build_page
from taia_hub.page.serving import launch_page
from taia_hub.page.settings import PageSettings

__all__ = ["PageSettings", "build_page", "launch_page"]
