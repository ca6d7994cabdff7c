"""Merging a mode into a plain checkpoint of the base architecture, shard by shard."""

from taia_hub.merging.running import MergeReport, merge

__all__ = ["MergeReport", "merge"]
