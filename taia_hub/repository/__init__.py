"""A TAIA repository: opened, checked, loaded, made, described and published.

A name comes in; `update_files.open_repository` makes one opened value of it, which everything else starts from: a
loaded model, an update on its base's structure, what a card says, a commit. It imports updates, cards and what is
below them; what only opens a repository goes without torch.
"""
