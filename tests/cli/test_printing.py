"""Nothing of a model, a repository or a file acts in the terminal that it is printed in."""

import json
import logging

import pytest

from taia_hub.cli.printing import SAFE_RECORDS, echo
from taia_hub.errors import TAIAError

EVIL = "\x1b]0;title\x07\x1b[31m\x9b2J\u202ered"


@pytest.mark.parametrize("field", ["peft_type", "rank_pattern"])
def test_what_a_repository_says_of_itself_is_printed_as_text(pico, tmp_path, taia, field):
    pico.taia("llama").save_pretrained(tmp_path / "taia")
    path = tmp_path / "taia/adapter/adapter_config.json"
    value = f"LORA{EVIL}" if field == "peft_type" else {f"q{EVIL}": 2}
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    status, out, err = taia("info", tmp_path / "taia")
    assert (status, "red" in out + err) == (int(field == "peft_type"), True), err
    assert not set("\x1b\x9b\x07\u202e") & set(out + err)


@pytest.mark.parametrize("command", ["info", "export", "merge", "card"])
def test_names_in_errors_are_printed_as_text(taia, tmp_path, command):
    name = tmp_path / f"no{EVIL}where"
    status, out, err = taia(command, name, *(["--out", tmp_path / "out"] if command in ("export", "merge") else []))
    assert status == 1
    assert "Error: " in err
    assert not set("\x1b\x9b\x07\u202e") & set(out + err)


def test_an_error_says_nothing_that_acts():
    error = TAIAError(f"'{EVIL}' came.", f"Not '{EVIL}'.")
    assert str(error) == "'red' came.\nNot 'red'."


def test_what_is_printed_and_what_is_logged(capsys):
    echo(f"{EVIL}\ttab\nline")
    assert capsys.readouterr().out == "red\ttab\nline\n"
    record = logging.LogRecord("taia_hub", logging.WARNING, "", 0, "'%s' is here", (EVIL,), None)
    assert SAFE_RECORDS.filter(record)
    assert record.getMessage() == "'red' is here"
