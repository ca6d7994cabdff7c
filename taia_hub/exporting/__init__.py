"""Exports: what a mode computes, as a plain PEFT LoRA that serving engines take."""

from taia_hub.exporting.adapter import export_adapter, export_adapters
from taia_hub.exporting.conformance import ENGINES, check_engine, check_engines
from taia_hub.exporting.facts import BaseFacts, Verdict
from taia_hub.exporting.report import ExportReport
from taia_hub.exporting.rules import RULES, VLLM_RANKS, vllm_rank

__all__ = [
    "ENGINES",
    "RULES",
    "VLLM_RANKS",
    "BaseFacts",
    "ExportReport",
    "Verdict",
    "check_engine",
    "check_engines",
    "export_adapter",
    "export_adapters",
    "vllm_rank",
]
