"""What refining kept, in a file and in words."""

import json

import pytest

from taia_hub.errors import ConfigError
from taia_hub.refining.report import LeftAlone, Method, RefinedMatrix, Refinement

FOUND = Refinement(
    Method.NORM,
    (
        RefinedMatrix("layers.0.q_proj", "attention", (8, 8), 4, 3, 3.0, 2.4, 0.3, 0.2),
        RefinedMatrix("layers.0.up_proj", "ffn", (8, 8), 4, 1, 4.0, 1.8, 0.1, 0.1),
    ),
    (LeftAlone("lm_head.weight", "a module or rows that are saved whole"),),
    "0" * 64,
    "1" * 64,
)


def test_a_file_gives_back_what_was_saved(tmp_path):
    FOUND.save(tmp_path / "taia_refinement.json")
    assert Refinement.load(tmp_path / "taia_refinement.json") == FOUND


def test_roles_are_in_their_usual_order():
    turned = Refinement(FOUND.method, FOUND.matrices[::-1])
    assert list(turned.roles) == ["attention", "ffn"]
    assert turned.roles == FOUND.roles


def test_words_count_what_was_kept():
    assert FOUND.whole.share == pytest.approx(3.0 / 5.0)
    said = " ".join(FOUND.sentences())
    assert "NoRM (Jiang et al., ICLR 2025" in said
    assert "4 of 8 in 2 matrices, with 60.0% of its Frobenius norm" in said
    assert "1 tensor of the update is as trained" in said
    text = FOUND.to_text()
    assert "attention: 3 of 4 singular components of 1 matrix, 80.0% of the norm, overlap with the base 0.300" in text
    assert "as it was: 1 tensor, a module or rows that are saved whole" in text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 2}, "version"),
        ({"version": None}, "version"),
        ({"method": "other"}, "other"),
        ({"matrices": [{"name": "x"}]}, "malformed"),
        ({"matrices": [{**FOUND.to_json()["matrices"][0], "kept": -1}]}, "ranks"),
        ({"matrices": [{**FOUND.to_json()["matrices"][0], "norm": "3"}]}, "numbers"),
        ({"matrices": [{**FOUND.to_json()["matrices"][0], "kept": 5}]}, "ranks"),
        ({"matrices": [{**FOUND.to_json()["matrices"][0], "role": ["ffn"]}]}, "role"),
        ({"matrices": [{**FOUND.to_json()["matrices"][0], "phi": "high"}]}, "numbers"),
        ({"matrices": [3]}, "malformed"),
        ({"left_alone": 3}, "malformed"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, change, said):
    path = tmp_path / "taia_refinement.json"
    path.write_text(json.dumps({**FOUND.to_json(), **change}))
    with pytest.raises(ConfigError, match=said):
        Refinement.load(path)


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_a_file_that_is_no_object_is_refused(tmp_path, text):
    path = tmp_path / "taia_refinement.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match="JSON"):
        Refinement.load(path)


def test_a_method_that_is_not_known_is_refused():
    with pytest.raises(ConfigError, match="Did you mean 'norm'"):
        Method.parse("nrom")
    with pytest.raises(ConfigError, match="dg-hard"):
        Method.parse(3)
