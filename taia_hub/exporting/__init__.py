"""Exports: what a mode computes, as a plain PEFT LoRA that serving engines take."""

from taia_hub.engines.conformance import ENGINES, check_engine, check_engines
from taia_hub.engines.facts import BaseFacts, Verdict
from taia_hub.engines.rules import RULES, VLLM_RANKS, vllm_rank
from taia_hub.exporting.adapter import export_adapter, export_adapters
from taia_hub.exporting.report import ExportReport

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
