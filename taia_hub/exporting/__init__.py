"""Exports: what a mode computes, as a plain PEFT LoRA that serving engines take.

An update and settings go in; folders with a LoRA, a card and a report come out, whole or not at all. It uses the
merging of single modules and the engines' rules, and no loaded model.
"""

from typing import TYPE_CHECKING

from taia_hub.common.imports import later
from taia_hub.exporting.options import ExportOptions
from taia_hub.exporting.report import ExportReport

if TYPE_CHECKING:
    from taia_hub.exporting.adapter import export_adapter, export_adapters

__all__ = ["ExportOptions", "ExportReport", "export_adapter", "export_adapters"]
__getattr__ = later(__name__, {"export_adapter": "adapter", "export_adapters": "adapter"})
