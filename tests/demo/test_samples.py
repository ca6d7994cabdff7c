"""The shipped samples, and items as files."""

from pathlib import Path

from taia_hub.demo import base
from taia_hub.demo.samples import DOMAINS, TRAINED_DOMAIN, TRAINING_SAMPLE, Item, load_items, read_items, write_items

DATA = Path(base.__file__).with_name("data")


def test_held_out_items_are_not_trained_on():
    def plain(text):
        return " ".join(text.lower().split()).rstrip(" ?.")

    trained = load_items(TRAINING_SAMPLE)
    questions, answers = ({plain(getattr(item, name)) for item in trained} for name in ("question", "answer"))
    assert len(trained) == 480
    for sample in DOMAINS.values():
        for item in load_items(sample):
            assert plain(item.question) not in questions, item.id
            assert plain(item.answer) not in answers, item.id


def test_samples_are_small_named_once_and_have_a_source():
    sources = (DATA / "SOURCES.md").read_text()
    files = sorted(path.name for path in DATA.glob("*.jsonl"))
    assert files == sorted(f"{sample}.jsonl" for sample in (TRAINING_SAMPLE, *DOMAINS.values()))
    assert sum(path.stat().st_size for path in DATA.iterdir()) < 900_000
    for name in files:
        items = load_items(name.removesuffix(".jsonl"))
        assert f"| `{name}` | {len(items)} |" in sources
        assert len({item.id for item in items}) == len(items)
    assert next(iter(DOMAINS)) == TRAINED_DOMAIN


def test_short_items_come_first():
    for sample in (TRAINING_SAMPLE, *DOMAINS.values()):
        items = load_items(sample)
        lengths = [len(item.question) + len(item.answer) for item in items]
        half = len(items) // 2
        assert max(lengths[: half // 2]) < max(lengths[half:]), sample
        assert sum(lengths[:half]) < sum(lengths[half:]), sample


def test_items_survive_a_file(tmp_path):
    turns = ("system", "be kind"), ("user", "hi"), ("assistant", "Grüße\n")
    items = [Item("a", tuple({"role": role, "content": text} for role, text in turns)), Item.single("b", "q", "a")]
    write_items(tmp_path / "new" / "items.jsonl", items)
    assert read_items(tmp_path / "new" / "items.jsonl") == items
    assert (items[0].question, items[0].answer, len(items[0].prompt)) == ("hi", "Grüße\n", 2)
