"""The one adapter of a loaded model: PEFT puts no second one beside it, where no switch would govern it."""

from __future__ import annotations

from typing import Any, NoReturn

from peft import PeftConfig

from taia_hub.errors import UnsupportedUpdateError


class OneAdapter(dict[str, PeftConfig]):
    """A model's `peft_config`, which PEFT writes a new adapter's configuration to before it changes a module."""

    def __setitem__(self, name: str, config: PeftConfig) -> None:
        """Refuses another adapter."""
        refuse_second(name)

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Refuses other adapters."""
        refuse_second(*dict(*args, **kwargs))

    def __reduce_ex__(self, protocol: Any) -> Any:
        return OneAdapter, (dict(self),)


def refuse_second(*names: str) -> NoReturn:
    """Says why a model takes no second adapter, and what to do instead."""
    raise UnsupportedUpdateError(
        f"An adapter {', '.join(map(repr, names)) or 'of PEFT'} was to be put on a TAIA model: it would act outside "
        "the switch, in every mode.",
        "Load each adapter as a model of its own: `TAIAForCausalLM.from_adapter(base, adapter)`. To train the update "
        "on, load it with `is_trainable=True`; to train a new one on what acts now, give PEFT the plain model: "
        "`model.merge_and_unload()`.",
    )
