"""A TAIA repository: found, opened, checked, loaded, made, described and published.

A name comes in; an opened repository, a loaded model or a commit goes out.
"""
