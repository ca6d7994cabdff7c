"""Platforms that run vLLM themselves, and the manifest that each takes: a file a platform.

Sources stand in each file, with version or commit; what was run of a manifest in its `Platform.run`.
"""

from __future__ import annotations

from collections.abc import Mapping

from taia_hub.errors import ConfigError, closest
from taia_hub.serving.platforms import dynamo, kserve, llm_d, ray_serve
from taia_hub.serving.platforms.shared import HandOver, Platform, kubernetes_name

__all__ = ["PLATFORMS", "HandOver", "Platform", "find_platform", "kubernetes_name"]

PLATFORMS: Mapping[str, Platform] = {
    one.name: one for one in (kserve.PLATFORM, ray_serve.PLATFORM, llm_d.PLATFORM, dynamo.PLATFORM)
}
"""The platforms that modes are handed over to, by name."""


def find_platform(name: str) -> Platform:
    """Finds a platform by its name.

    Raises:
        ConfigError: If the name is not known.
    """
    if name not in PLATFORMS:
        raise ConfigError(
            f"The platform '{name}' is not known.{closest(name, PLATFORMS)}", f"Choose {', '.join(PLATFORMS)}."
        )
    return PLATFORMS[name]
