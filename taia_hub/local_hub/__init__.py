"""A loopback Hugging Face Hub kept in a folder: for work offline, classrooms and tests.

`store.py` is the Hub on disk, without HTTP; `reading.py`, `writing.py` and `uploads.py` are the calls of its API;
`app.py` is HTTP around them and `hub.py` the server.
Deliberately not offered: Xet, discussions with text, merging pull requests, likes, collections and search.
"""

from taia_hub.local_hub.hub import LocalHub

__all__ = ["LocalHub"]
