"""Checkpoints as files: tensors by name without loading a model, shards that are written whole.

It may import `hub` and what lies below.
"""
