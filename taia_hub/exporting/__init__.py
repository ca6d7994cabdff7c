"""Exports: what a mode computes, as a plain PEFT LoRA that serving engines take.

An update and settings go in; folders with a LoRA, a card and a report come out, whole or not at all. It uses the
merging of single modules and the engines' rules, and no loaded model.
"""

from taia_hub.exporting.adapter import export_adapter, export_adapters
from taia_hub.exporting.options import ExportOptions
from taia_hub.exporting.report import ExportReport

__all__ = ["ExportOptions", "ExportReport", "export_adapter", "export_adapters"]
