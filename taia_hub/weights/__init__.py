"""Checkpoints as files: a model's structure without weights, tensors by name, shards that are written whole.

A model's folder or Hub id comes in, and tensors go out one at a time, so that no checkpoint need fit into memory. It
may import `hub` and what lies below.
"""
