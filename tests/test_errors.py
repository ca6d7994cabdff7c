"""Messages and hints."""

import os

from taia_hub.errors import TAIAError


def test_messages_stand_apart_from_hints():
    error = TAIAError("What came.", "What to do.")
    assert (error.message, error.hint, str(error)) == ("What came.", "What to do.", "What came.\nWhat to do.")
    assert os.linesep not in str(TAIAError("What came."))
