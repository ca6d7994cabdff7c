"""Messages and hints."""

import os
import time

import pytest

from taia_hub.errors import TAIAError, by_name


def test_messages_stand_apart_from_hints():
    error = TAIAError("What came.", "What to do.")
    assert (error.message, error.hint, str(error)) == ("What came.", "What to do.", "What came.\nWhat to do.")
    assert os.linesep not in str(TAIAError("What came."))


@pytest.mark.parametrize("piece", ["x", "/", "/models--", "'/x' ", "/models--a/", "models--org--a/"])
def test_a_long_text_takes_no_long_time(piece):
    text = piece * (40_000 // len(piece))
    start = time.perf_counter()
    assert by_name(f"{text} /c/models--org--a/blobs/1") == f"{text} org/a/1"
    assert time.perf_counter() - start < 1


def test_paths_in_a_cache_are_names_of_repositories():
    said = "/c/models--org--a/snapshots/0a1b/x.json and '/my cache/datasets--b/blobs/1' (see /c/spaces--o--c/blobs/2)"
    assert by_name(said) == "org/a/x.json and 'b/1' (see o/c/2)"
    assert by_name("'C:\\hf\\models--org--a\\blobs\\1'") == "'org/a\\1'"
