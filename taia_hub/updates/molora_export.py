"""The attention part of a mixture as what it is: an ordinary LoRA in PEFT's format."""

from __future__ import annotations

from pathlib import Path

from peft import LoraConfig
from safetensors.torch import save

from taia_hub._files import write_atomically
from taia_hub.errors import ConfigError
from taia_hub.updates.molora_config import read_molora_config
from taia_hub.updates.molora_files import read_tensors
from taia_hub.updates.strict import PREFIX, WEIGHTS_NAME


def export_attention(folder: str | Path, out: str | Path) -> None:
    """Writes the attention part of a saved mixture as a PEFT adapter: what mode `attention` computes.

    Args:
        folder: Folder with `molora_config.json` and `molora_model.safetensors`.
        out: Folder for `adapter_config.json` and `adapter_model.safetensors`, made if need be.

    Raises:
        RepositoryError: If a file of the mixture is missing or damaged.
        ConfigError: If its configuration is malformed, or it has no attention part.

    Example:
        ```python
        export_attention("run/molora", "attention-adapter")
        model = PeftModel.from_pretrained(base, "attention-adapter")
        ```
    """
    description, tensors = read_molora_config(Path(folder)), read_tensors(Path(folder))
    if not description.attention:
        raise ConfigError(f"The mixture in '{folder}' has no attention part.", "Its experts fit no other format.")
    settings, out = description.settings, Path(out)
    names = [f"{PREFIX}{path}.lora_{factor}.weight" for path in description.attention for factor in "AB"]
    write_atomically(out / WEIGHTS_NAME, save({name: tensors[name] for name in names}, metadata={"format": "pt"}))
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.rank_of("attention"),
        lora_alpha=settings.alpha_of("attention"),
        lora_dropout=settings.dropout,
        use_rslora=settings.rslora,
        target_modules=list(description.attention),  # whole paths: not every layer need be adapted
        base_model_name_or_path=description.base_model_name_or_path,
        revision=description.base_model_revision,
        inference_mode=True,
    )
    config.save_pretrained(str(out))
