"""What a training that is published does once: it takes a base apart, reads its configuration and writes a card."""

from collections import Counter

import pytest
from transformers import PreTrainedConfig

from taia_hub import cards, hub
from taia_hub.training import TrainingRecipe, train
from taia_hub.weights import skeleton


@pytest.fixture
def done(monkeypatch):
    """Counts the work of a training, by what is done."""
    counts = Counter()

    def count(owner, name, what):
        real = getattr(owner, name)

        def counting(*arguments, **keywords):
            counts[what(*arguments)] += 1
            return real(*arguments, **keywords)

        monkeypatch.setattr(owner, name, counting)

    count(skeleton, "build", lambda *_: "structures")
    count(cards, "render_card", lambda *_: "cards")
    count(PreTrainedConfig, "_get_config_dict", lambda name, *_: f"configuration of {name}")
    count(hub, "read_json", lambda path: f"read {path.name}")
    return counts


def test_a_published_training_does_everything_once(online, repo_id, tmp_path, done):
    path = tmp_path / "items.jsonl"
    path.write_text('{"prompt": "a", "completion": "the cat"}\n' * 8)
    recipe = TrainingRecipe(base=online.base, data=(str(path),), batch_size=4, rank=2, max_steps=2, save_steps=1)

    train(recipe, push=repo_id)

    assert done["structures"] == 1
    assert done["cards"] == 1
    read = {what: count for what, count in done.items() if what.startswith("configuration")}
    assert read == {f"configuration of {online.base}": 1}  # by training, checkpoints and publishing together
    assert done["read config.json"] <= 2  # whoever publishes looks at what is to be loaded, and no other reads it back
