"""A Gradio Space that compares the modes of a repository: what is known of one, what it shall hold, and its commit.

A Hub id comes in; `making.plan_space` says what would change, and carrying that out is one commit, or a folder.
"""
