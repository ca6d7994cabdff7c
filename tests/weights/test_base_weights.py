"""Single weights of a base that is on the Hub."""

from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import save_file

from taia_hub import hub
from taia_hub.weights.base_weights import BaseWeights
from taia_hub.weights.checkpoint import Group, StoredTensor


def test_a_shard_in_a_folder_is_fetched_by_its_whole_name(tmp_path, monkeypatch):
    save_file({"w": torch.ones(1)}, tmp_path / "a.safetensors")
    asked = []

    def download(repo_id, name, **_):
        asked.append((repo_id, name))
        return str(tmp_path / "a.safetensors")

    monkeypatch.setattr(hub, "api", lambda token: SimpleNamespace(hf_hub_download=download))
    stored = StoredTensor("w", Path("parts/a.safetensors"), "F32", (1,), 0, 4)
    groups = {"w": Group(((stored, ""),), {"w": (1,)})}
    base = BaseWeights(hub.Source("org/base", tmp_path, "a" * 40), hub.HubAccess(), None, groups)
    assert base.read("w") == 1
    assert asked == [("org/base", "parts/a.safetensors")]
