"""Parts of an update that look like noise, taken off its matrices by their singular values before it is published.

In: an update's files (a LoRA, or a base model and its full fine-tune) and, one tensor at a time, the weights that it
belongs to. Out: files of the same kind with updates of lower rank, and a `Refinement`: what was kept of each matrix,
and what was left alone. `norm` is for LoRA adapters, `dg_hard` for full fine-tunes, `subspaces` has the decompositions
of both; `report` holds plain values and is light. It knows nothing of modes and repositories: these act on what comes
out.

May import: updates, weights, hub, switch, roles, common.
"""
