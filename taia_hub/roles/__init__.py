"""Which module of a model is attention, which is feed-forward and which is neither, read from its structure.

A model comes in, a mapping from module path to role goes out (`roles.sublayers`). It may import the errors alone.
"""

ROLES = ("attention", "ffn", "other")
