"""Merging a mode into a plain checkpoint of the base architecture, shard by shard.

A repository and a setting come in; a folder that knows nothing of TAIA goes out, whole or to be gone on with, and a
`MergeReport`. It may import `repository` and what lies below.
"""

from taia_hub.merging.running import MergeReport, merge

__all__ = ["MergeReport", "merge"]
