"""A Gradio Space that compares the modes of a repository: what is known of one, what it shall hold, and its commit."""
