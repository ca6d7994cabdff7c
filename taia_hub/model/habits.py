"""What people know from PEFT: its names on a loaded model do what they say, under the switch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from taia_hub.errors import UnsupportedUpdateError

if TYPE_CHECKING:
    from typing_extensions import Self

    from taia_hub.switch.blocks import Block

_ADAPTER = "default"
_BEFORE = "_taia_before_disabling"


class Names(list[str]):
    """Names of adapters: an attribute as in PEFT, which may be called as transformers' method is."""

    def __call__(self) -> list[str]:
        """Returns the names."""
        return list(self)


class Habits:
    """PEFT's and transformers' methods of a model with an adapter."""

    @property
    def active_adapter(self) -> str:
        """PEFT's name of the update; `status()` tells which part of it acts."""
        return _ADAPTER

    @property
    def active_adapters(self) -> Names:
        """PEFT's name of the update, in a list."""
        return Names([_ADAPTER])

    @property
    def active_peft_config(self) -> Any:
        """The configuration of the update, if that is an adapter of PEFT."""
        model: Any = self
        return model.peft_config.get(_ADAPTER)

    def get_base_model(self) -> Self:
        """Returns the model itself, which is of its base's class; mode `"none"` runs the base, `unload` leaves it."""
        model: Any = self
        return model

    def get_layer_status(self) -> Any:
        """Returns what PEFT says of each adapted layer; `status()` tells which acts."""
        import peft

        model: Any = self
        return peft.get_layer_status(model)

    def get_model_status(self) -> Any:
        """Returns what PEFT says of the adapted layers together; `status()` tells which act."""
        import peft

        model: Any = self
        return peft.get_model_status(model)

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """Counts the parameters that take gradients, and all, as PEFT does."""
        from peft import PeftModel

        model: Any = self
        return PeftModel.get_nb_trainable_parameters(model)

    def print_trainable_parameters(self) -> None:
        """Prints the number of parameters that take gradients, in PEFT's words."""
        from peft import PeftModel

        model: Any = self
        PeftModel.print_trainable_parameters(model)

    def disable_adapter(self) -> Block[Self]:
        """Runs a block in mode `"none"`, as `using("none")` does."""
        model: Any = self
        block: Block[Self] = model.using("none")
        return block

    def disable_adapters(self) -> None:
        """Sets mode `"none"`, until `enable_adapters`; a setting of a call or block goes before it."""
        model: Any = self
        before = model.inference_modules
        model.inference_modules = "none"
        model.__dict__.setdefault(_BEFORE, before)

    def enable_adapters(self) -> None:
        """Sets again what `disable_adapters` found, where nothing else was set since."""
        model: Any = self
        before = model.__dict__.pop(_BEFORE, None)
        if before is not None and model.inference_modules == "none":
            model.inference_modules = before

    disable_adapter_layers, enable_adapter_layers = disable_adapters, enable_adapters

    def set_adapter(self, adapter_name: str | Sequence[str], inference_mode: bool = False) -> None:
        """Does nothing for the update's own name, and refuses others; `inference_modules` says what acts.

        Args:
            adapter_name: The name.
            inference_mode: Not asked: gradients stay as the model was loaded.

        Raises:
            UnsupportedUpdateError: For another name.
        """
        names = [adapter_name] if isinstance(adapter_name, str) else list(adapter_name)
        if names != [_ADAPTER]:
            raise UnsupportedUpdateError(
                f"The adapter {adapter_name!r} was to act, but a TAIA model has one update, named '{_ADAPTER}'.",
                "Set `model.inference_modules` to choose which part acts, or load the other adapter as a model of its "
                "own: `TAIAForCausalLM.from_adapter(base, adapter)`.",
            )

    def add_adapter(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuses a second adapter.

        Raises:
            UnsupportedUpdateError: Always.
        """
        from taia_hub.updates.peft.alone import refuse_second

        named = kwargs.get("adapter_name") or next((one for one in args if isinstance(one, str)), None)
        refuse_second(*([named] if named else []))

    load_adapter = add_weighted_adapter = add_adapter

    def delete_adapter(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuses to take the update out of a TAIA model.

        Raises:
            UnsupportedUpdateError: Always.
        """
        raise UnsupportedUpdateError(
            "The update of a TAIA model was to be deleted; without it there is nothing to switch.",
            "`model.unload()` makes it the plain base model; `model.inference_modules = 'none'` runs that, and can be "
            "undone.",
        )

    def merge_adapter(self, adapter_names: Sequence[str] | None = None, safe_merge: bool = False) -> None:
        """Folds what acts now into the live weights, as `fuse` does.

        Args:
            adapter_names: None, or the update's own name.
            safe_merge: Not asked: the original weights are kept.

        Raises:
            SettingError: As in `fuse`.
            UnsupportedUpdateError: As in `fuse`, and for another name.
        """
        if adapter_names:
            self.set_adapter(adapter_names)
        model: Any = self
        model.fuse(model.status().inference_modules)

    def unmerge_adapter(self) -> None:
        """Puts the original weights back, as `unfuse` does."""
        model: Any = self
        model.unfuse()

    def merge_and_unload(
        self, progressbar: bool = False, safe_merge: bool = False, adapter_names: Sequence[str] | None = None
    ) -> Any:
        """Folds what acts now into the weights and takes switch and update off: the model is changed in place.

        Args:
            progressbar: Not asked.
            safe_merge: Whether merged weights that are not finite are refused.
            adapter_names: None, or the update's own name.

        Returns:
            The model, of its base's own class, which runs what acted.

        Raises:
            SettingError: As in `fuse`.
            UnsupportedUpdateError: If an acting update cannot be folded; nothing was changed.

        Example:
            ```python
            plain = model.merge_and_unload()  # the mode that acts now; for another, in `with model.using(mode):`
            plain.save_pretrained("merged")
            ```
        """
        from taia_hub.updates.unloading import unload

        if adapter_names:
            self.set_adapter(adapter_names)
        model: Any = self
        return unload(model, model.status().inference_modules, safe_merge)

    def unload(self) -> Any:
        """Takes switch and update off: the model is changed in place, and is its base again.

        Returns:
            The model, of its base's own class.

        Raises:
            SettingError: If a setting is fused.
        """
        from taia_hub.updates.unloading import unload

        return unload(self, "none")

    def create_or_update_model_card(self, output_dir: str | os.PathLike[str]) -> None:
        """Writes the repository into a folder, with its card; a person's edits of the card stay.

        Args:
            output_dir: The folder.
        """
        model: Any = self
        model.save_pretrained(output_dir)
