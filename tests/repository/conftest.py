"""What several tests of this room start from."""

import pytest

from taia_hub.repository.creating import create_repository


@pytest.fixture
def saved(online, tmp_path):
    """A saved TAIA repository with a tokenizer, whose base is on the Hub."""
    created = create_repository(online.base, online.adapter, out=tmp_path / "saved")
    return created.folder
