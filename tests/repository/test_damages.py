"""Damaged repositories: none loads in silence to other logits, none hangs, and every error is ours."""

import os

from tests.damages import make_repositories, try_damages

COUNT = int(os.environ.get("TAIA_TEST_DAMAGES", "300"))
SEED = int(os.environ.get("TAIA_TEST_DAMAGES_SEED", "0"))


def test_what_is_damaged_is_refused_or_computes_the_same(pico, tmp_path):
    faults = try_damages(make_repositories(pico, tmp_path), COUNT, SEED)
    assert not faults, "\n".join(f"{one.number} {one.call}: {one.damage}: {one.what}" for one in faults)
