"""What lies in the folder of a tuning."""

from pathlib import Path

import pytest

from taia_hub.errors import ConfigError, RepositoryError
from taia_hub.tuning.keeping import STATE_FILE, Keeper

INPUTS = {"target items": "a", "retained texts": "b"}


def test_what_was_kept_is_found_by_the_same_inputs(tmp_path: Path) -> None:
    Keeper.of(tmp_path / "new", INPUTS).keep({"steps": 3})
    assert Keeper.of(tmp_path / "new", INPUTS).state == {"steps": 3}
    with pytest.raises(ConfigError, match="the target items are others"):
        Keeper.of(tmp_path / "new", {**INPUTS, "target items": "c"})
    assert Keeper.of(tmp_path / "new", {**INPUTS, "target items": "c"}, overwrite=True).state is None


def test_of_several_processes_the_first_one_writes(tmp_path: Path) -> None:
    Keeper.of(tmp_path, INPUTS, is_first=False).keep({"steps": 3})
    assert not any(tmp_path.iterdir())


def test_a_tuning_that_nothing_is_known_of_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "taia_tuning.json").write_text("{}")
    with pytest.raises(ConfigError, match="another tuning"):
        Keeper.of(tmp_path, INPUTS)


def test_a_damaged_state_is_told(tmp_path: Path) -> None:
    (tmp_path / STATE_FILE).write_text("{")
    with pytest.raises(ConfigError, match=rf"{STATE_FILE}' is damaged\.\n.*--overwrite"):
        Keeper.of(tmp_path, INPUTS)
    assert Keeper.of(tmp_path, INPUTS, overwrite=True).state is None


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(RepositoryError, match="is a file"):
        Keeper.of(tmp_path / "out", INPUTS)


def test_without_a_folder_nothing_is_kept() -> None:
    keeper = Keeper.of(None, INPUTS)
    keeper.keep({"steps": 3})
    assert (keeper.state, keeper.finished) == (None, None)
