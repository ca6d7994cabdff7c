"""Single weights of a base that is on the Hub."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from taia_hub import hub
from taia_hub.weights.base_weights import BaseWeights
from taia_hub.weights.checkpoint import Group, StoredTensor


def test_a_shard_in_a_folder_is_fetched_by_its_whole_name(tmp_path, monkeypatch):
    (tmp_path / "cache" / "parts").mkdir(parents=True)
    save_file({"w": torch.ones(1)}, tmp_path / "cache" / "parts" / "a.safetensors")
    asked = []

    def fetch(name, patterns, **_):
        asked.append((name, *patterns))
        return hub.Source(name, tmp_path / "cache", "a" * 40)

    monkeypatch.setattr("taia_hub.hub.reading.fetch", fetch)
    stored = StoredTensor("w", Path("parts/a.safetensors"), "F32", (1,), 0, 4)
    groups = {"w": Group(((stored, ""),), {"w": (1,)})}
    base = BaseWeights(hub.Source("org/base", tmp_path / "here", "a" * 40), hub.HubAccess(), None, groups)
    assert base.read("w") == 1
    assert asked == [("org/base", "parts/a.safetensors")]
