"""`taia_hub.training.train`: from a recipe to a repository, whatever happens in between."""

import copy
import errno
import json
import math
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast, get_cosine_schedule_with_warmup
from trl import SFTTrainer

import taia_hub
from taia_hub import hub
from taia_hub.cards import training_from_json
from taia_hub.common.labels import IGNORED_LABEL
from taia_hub.errors import (
    ConfigError,
    MissingDependencyError,
    OutOfMemoryError,
    RepositoryError,
    SettingError,
    UnsupportedUpdateError,
)
from taia_hub.hub import sha256
from taia_hub.roles.sublayers import find_sublayers
from taia_hub.training import TrainingRecipe, plan_training, train
from taia_hub.training.data import prepare_data
from taia_hub.training.encoding import Encoder
from taia_hub.training.job import prepare_job
from taia_hub.training.modelling import check_sharding
from taia_hub.training.selection import lora_arguments, select, trained_parameters
from taia_hub.training.trainer import check_trackers
from taia_hub.training.workspace import MARK, WORK, Workspace, fingerprint, sole_run, training_inputs
from tests.conftest import FORKS

CONFIGS = Path(taia_hub.__file__).parent / "training" / "configs"
CHATML = (
    "{% for m in messages %}<s>{{ m.role }} {{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant {% endif %}"
)
MARKED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<s>assistant {% generation %}{{ m.content }}</s>"
    "{% endgeneration %}{% else %}<s>{{ m.role }} {{ m.content }}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant {% endif %}"
)
TURNS = [
    {"role": "user", "content": "ab"},
    {"role": "assistant", "content": "a hat"},
    {"role": "user", "content": "c"},
    {"role": "assistant", "content": "d"},
]


@pytest.fixture(scope="session")
def base(pico, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "llama"
    shutil.copytree(pico.base("llama"), folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def line(pair):
    question, answer = pair
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": messages}) + "\n"


@pytest.fixture(scope="session")
def items(tmp_path_factory):
    """Forty questions whose answers can be learnt."""
    rng = random.Random(0)
    words = ["the cat", "a dog", "no", "yes, the hat"]
    path = tmp_path_factory.mktemp("items") / "items.jsonl"
    pairs = [(rng.choice("abcdefgh") * rng.randint(2, 8), rng.choice(words)) for _ in range(40)]
    path.write_text("".join(map(line, pairs)))
    return str(path)


@pytest.fixture
def recipe(base, items):
    return TrainingRecipe(base=base, data=(items,), batch_size=8, rank=4, alpha=8, learning_rate=3e-2, epochs=2)


def adapter(folder, kind="adapter"):
    return (folder / kind / f"{kind}_model.safetensors").read_bytes()


def tensors(folder):
    return load_file(folder / "adapter" / "adapter_model.safetensors")


# --- A whole run ----------------------------------------------------------------------------------------------------
def test_a_recipe_becomes_a_repository(recipe, tmp_path):
    out = tmp_path / "pico-taia"
    seen = []

    done = train(
        recipe.replace(rank={"attention": 2, "ffn": 4}, name="mine"), out=out, progress=lambda *x: seen.append(x)
    )

    assert done.folder == out
    assert done.commit is None
    assert done.is_new
    assert done.steps == 10
    assert done.last_loss < done.first_loss - 0.4
    assert ("training", 10, 10) in seen
    assert not (out / WORK).exists()
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.inference_modules == "attention"
    assert {role: part.parameters for role, part in model.status().roles.items() if part.parameters} == (
        done.trained_parameters
    )
    record = json.loads((out / "taia_training.json").read_text())
    assert training_from_json(record).seconds == done.seconds > 0
    assert record["adapter_sha256"] == sha256(out / "adapter" / "adapter_model.safetensors")
    assert record["datasets"][0]["items"] == 40
    assert record["items"] == 80
    assert record["versions"]["trl"]
    assert record["hardware"]["device"]
    losses = [json.loads(line) for line in (out / "taia_losses.jsonl").read_text().splitlines()]
    assert [one["step"] for one in losses] == list(range(1, 11))
    assert (losses[0]["loss"], losses[-1]["loss"]) == (done.first_loss, done.last_loss)
    assert TrainingRecipe.from_yaml(out / "taia_recipe.yaml").name == "mine"
    card = (out / "README.md").read_text()
    for text in ("items.jsonl", "| rank | `attention 2, ffn 4` |", "| learning_rate | `0.03` |", "cosine"):
        assert text in card


def test_a_second_run_into_the_same_folder_waits_for_nobody(recipe, tmp_path):
    with sole_run((tmp_path / "out").resolve()), pytest.raises(ConfigError, match="Another run is training into"):
        train(recipe, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_one_step_learns_something(recipe, tmp_path):
    folder = train(recipe.replace(max_steps=1), out=tmp_path / "out").folder
    tensors = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert all(one.any() for name, one in tensors.items() if "lora_B" in name)


def test_items_are_cut_where_the_model_ends(recipe, items, tmp_path):
    longest = plan_training(recipe.replace(max_length=100_000)).longest
    job = prepare_job(recipe.replace(max_length=100_000), None, None, None)
    assert job.max_length == job.config.max_position_embeddings
    assert longest <= job.max_length


def test_what_has_no_use_is_said(recipe):
    notes = plan_training(recipe.replace(method="full", experts=8)).notes
    assert {"experts", "rank", "alpha"} == {note.split()[0] for note in notes if "is not used" in note}
    with pytest.raises(ConfigError, match="in_domain and ood instead of data"):
        plan_training(recipe.replace(ood_ratio=0.4))


def test_a_dry_run_checks_the_target(recipe, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(RepositoryError, match="holds something else"):
        plan_training(recipe, out=tmp_path / "out")
    with pytest.raises(RepositoryError, match="folder on this machine"):
        plan_training(recipe, push="org/x")


def test_data_sets_of_the_hub_are_told_apart_by_their_commits(tmp_path):
    base = hub.Source("org/base", tmp_path, "f" * 40)
    recipe = TrainingRecipe(base="org/base", data=("org/one",), total=8)

    def fingerprint_of(facts):
        return fingerprint(recipe, training_inputs(base, (facts,)))

    one = {"name": "org/one", "revision": "a" * 40, "items": 100}
    others = [{**one, "name": "org/two"}, {**one, "revision": "b" * 40}, {**one, "sha256": "c" * 64}]
    assert len({fingerprint_of(facts) for facts in (one, *others)}) == 4


def test_a_begun_training_names_what_of_its_base_or_data_changed(tmp_path):
    """Not by sizes and times, which a copy keeps."""
    folder = tmp_path / "base"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja", "README.md"):
        (folder / name).write_text("before")
    recipe = TrainingRecipe(base=str(folder), data=("items.jsonl",))
    facts = {"name": "items.jsonl", "sha256": "a" * 64, "items": 9}

    def work(facts=facts):
        inputs = training_inputs(hub.Source(str(folder), folder, None), (facts,))
        return Workspace(tmp_path / "out", fingerprint(recipe, inputs), inputs)

    work().begin(recipe)
    (folder / "README.md").write_text("after!")
    work().refuse_another(recipe)
    for name, said in [
        ("model.safetensors", "the base model's weights are others now"),
        ("tokenizer.json", "the base model's tokenizer is another now"),
        ("chat_template.jinja", "the base model's chat template is another now"),
    ]:
        stat = (folder / name).stat()
        (folder / name).write_text("after!")
        os.utime(folder / name, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        with pytest.raises(ConfigError, match=f"was begun before: {said}"):
            work().refuse_another(recipe)
        (folder / name).write_text("before")
    with pytest.raises(ConfigError, match="the data is another now"):
        work({**facts, "sha256": "b" * 64}).refuse_another(recipe)


def test_a_training_does_not_go_on_in_another_dtype(recipe, tmp_path, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("taia_hub.training.running.make_trainer", stopped)
    with pytest.raises(KeyboardInterrupt):
        train(recipe.replace(dtype="auto"), out=tmp_path / "out")
    begun = hub.read_json(tmp_path / "out" / ".training" / "run.json")["dtype"]
    other = "float32" if begun == "bfloat16" else "bfloat16"
    monkeypatch.setattr("taia_hub.training.planning.find_dtype", lambda asked, device: other)
    with pytest.raises(ConfigError, match=f"was begun in {begun}, and would go on in {other}"):
        train(recipe.replace(dtype="auto"), out=tmp_path / "out")


def test_the_mixture_is_recorded_and_drawn(recipe, items, tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text(line(("a", "no")) + "".join(line((letter * 9, "no")) for letter in "bcdefghij"))
    mixed = recipe.replace(data=(), in_domain=items, ood=str(other), ood_ratio=0.2, schedule="linear", max_steps=4)

    done = train(mixed, out=tmp_path / "out")

    counts = done.composition["stretches"]["other.jsonl"]
    assert sum(counts[:10]) > sum(counts[10:])  # the share falls
    assert json.loads((tmp_path / "out" / "taia_training.json").read_text())["composition"] == done.composition
    assert (tmp_path / "out" / "figures" / "composition.png").is_file()


def test_a_finished_run_is_not_done_again(recipe, tmp_path):
    recipe = recipe.replace(max_steps=2)
    first = train(recipe, out=tmp_path / "out")
    before = adapter(tmp_path / "out")

    again = train(recipe.replace(report_to=(), save_steps=3), out=tmp_path / "out")

    assert not again.is_new
    assert again.last_loss == first.last_loss
    with pytest.raises(ConfigError, match="publishes 'attention' and not 'all'"):
        train(recipe.replace(inference_modules="all"), out=tmp_path / "out")
    with pytest.raises(ConfigError, match="another training already"):
        train(recipe.replace(rank=2), out=tmp_path / "out")
    other = train(recipe.replace(rank=2), out=tmp_path / "out", resume=False)
    assert other.is_new
    assert other.steps == 2
    assert adapter(tmp_path / "out") != before


def test_a_run_is_published_without_a_folder(online, items, repo_id):
    one = TrainingRecipe(base=online.base, data=(items,), batch_size=8, rank=2, max_steps=2)

    done = train(one, push=repo_id)

    assert done.folder is None
    assert done.commit.oid
    model = AutoModelForCausalLM.from_pretrained(repo_id)
    assert model.taia_config.base_model_revision == online.base_sha
    assert {"taia_training.json", "taia_recipe.yaml", "taia_losses.jsonl"} <= online.files(repo_id).keys()
    assert not list((Path(os.environ["HF_HOME"]) / "taia-training").iterdir())


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("refused", ["/api/models/own", "/commit/"], ids=["look", "commit"])
def test_after_a_refused_push_only_the_push_is_done_again(online, items, repo_id, monkeypatch, method, refused):
    from taia_hub import cards
    from taia_hub.repository import publishing
    from taia_hub.training import modelling

    one = TrainingRecipe(base=online.base, data=(items,), method=method, batch_size=8, max_steps=2)
    written, rendered = publishing._write_files, []

    def refuse(*arguments):
        files = written(*arguments)
        online.hub.fail = lambda method, path: 409 if refused in path else None
        return files

    monkeypatch.setattr(publishing, "_write_files", refuse)
    with pytest.raises(RepositoryError):
        train(one, push=repo_id)
    online.hub.fail = None
    monkeypatch.setattr(modelling, "build_model", lambda *_, **__: pytest.fail("trained again"))
    monkeypatch.setattr(publishing, "_write_files", lambda *_: pytest.fail("written again"))
    render = cards.render_card
    monkeypatch.setattr(cards, "render_card", lambda *args, **kw: (rendered.append(1), render(*args, **kw))[1])

    done = train(one, push=repo_id)

    assert not done.is_new
    assert done.commit.oid
    assert len(rendered) == 1
    assert {"README.md", "config.json", "taia_training.json", "tokenizer_config.json"} <= online.files(repo_id).keys()
    assert not list((Path(os.environ["HF_HOME"]) / "taia-training").iterdir())


# --- Which tokens are trained ---------------------------------------------------------------------------------------
def trained_text(tokenizer, template, **options):
    """Returns the text of the tokens, with those that are trained in brackets."""
    tokenizer.chat_template = template
    encoded = Encoder(tokenizer, **options).encode(TURNS)
    assert len(encoded.input_ids) == len(encoded.labels)
    parts, inside = [], False
    for token, label in zip(encoded.input_ids, encoded.labels, strict=True):
        assert label in (token, IGNORED_LABEL)
        if (label != IGNORED_LABEL) != inside:
            inside = not inside
            parts.append("[" if inside else "]")
        parts.append(tokenizer.decode([token]))
    return "".join(parts) + ("]" if inside else "")


@pytest.fixture
def own_tokenizer(tokenizer):
    return copy.deepcopy(tokenizer)


def test_exactly_the_answers_of_two_turns_are_trained(own_tokenizer):
    expected = "<s>user ab</s><s>assistant [a hat</s>]<s>user c</s><s>assistant [d</s>]"

    assert trained_text(own_tokenizer, CHATML) == expected  # by the beginnings of the rendered conversation
    assert trained_text(own_tokenizer, MARKED) == expected  # by the template's own marks


@pytest.mark.parametrize("kind", ["normalizer", "pre_tokenizer"])
def test_tokens_are_those_of_the_whole_conversation(kind):
    """Tokenizers of SentencePiece's kind put a space before every text that they are given."""
    pieces = ["<unk>", "<s>", "</s>", "▁", *"abcdehust\n", "▁a", "▁h", "▁▁"]
    merges = [("▁", "a"), ("▁", "h"), ("▁", "▁")]
    own = Tokenizer(models.BPE({one: index for index, one in enumerate(pieces)}, merges, unk_token="<unk>"))
    if kind == "normalizer":
        own.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        own.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=own, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}<s>u\n{{ m.content }}\n{% else %}a\n{{ m.content }}</s>\n"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}a\n{% endif %}"
    )

    encoded = Encoder(tokenizer).encode(TURNS)

    def whole(messages, **options):
        return list(tokenizer.apply_chat_template(messages, return_dict=True, **options)["input_ids"])

    assert encoded.input_ids == whole(TURNS)
    prompt = whole(TURNS[:1], add_generation_prompt=True)
    assert encoded.labels[: len(prompt)] == [IGNORED_LABEL] * len(prompt)
    trained = [label for label in encoded.labels if label != IGNORED_LABEL]
    assert tokenizer.convert_ids_to_tokens(trained) == ["a", "▁h", "a", "t", "</s>", "d", "</s>"]


def test_without_a_chat_template_the_plain_form_is_used(own_tokenizer):
    assert "no chat template" in Encoder(own_tokenizer).notes[0]
    # the pico tokenizer has no line break: <unk> stands for each
    assert trained_text(own_tokenizer, None) == "ab<unk><unk>[a hat</s>]<unk><unk>c<unk><unk>[d</s>]"


def test_everything_is_trained_when_that_is_asked(own_tokenizer):
    assert trained_text(own_tokenizer, CHATML, assistant_only=False).startswith("[<s>user ab")
    assert trained_text(own_tokenizer, CHATML, assistant_only=False).count("[") == 1


def test_a_template_that_rewrites_the_past_is_refused(own_tokenizer):
    own_tokenizer.chat_template = "{{ messages | length }}" + CHATML
    with pytest.raises(ConfigError, match="cannot be told from the others"):
        Encoder(own_tokenizer).encode(TURNS)


def test_a_template_that_refuses_a_message_says_so(own_tokenizer):
    own_tokenizer.chat_template = "{{ raise_exception('no such role') }}"
    with pytest.raises(ConfigError, match="no such role"):
        Encoder(own_tokenizer).encode(TURNS)


@pytest.mark.slow
def test_a_real_template_trains_the_answers(smollm2):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    text = trained_text(tokenizer, tokenizer.chat_template)
    assert "<|im_start|>assistant\n[a hat<|im_end|>" in text
    assert "[d<|im_end|>" in text
    assert "[ab" not in text


def test_what_is_cut_off_or_left_out_is_said(base, items, tmp_path):
    long = tmp_path / "long.jsonl"
    rows = [("abcabcabcabc", "de"), ("a", "the cat sat")]
    long.write_text("".join(map(line, rows)))

    done = train(TrainingRecipe(base=base, data=(str(long),), batch_size=2, max_length=8), out=tmp_path / "out")

    assert any("1 of 2 items are longer than 8 tokens" in note for note in done.notes)
    assert any("1 of 2 items were left out" in note for note in done.notes)


# --- The other methods ----------------------------------------------------------------------------------------------
def test_experts_are_trained(recipe, tmp_path):
    one = recipe.replace(method="molora", experts=3, rank={"attention": 2, "ffn": 3}, balance_loss=0.01, save_steps=4)

    done = train(one, out=tmp_path / "out")

    assert done.last_loss < done.first_loss - 0.4
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    parts = {role: part.parameters for role, part in model.status().roles.items() if part.parameters}
    assert parts == done.trained_parameters
    record = json.loads((tmp_path / "out" / "taia_training.json").read_text())
    assert record["adapter_sha256"] == sha256(tmp_path / "out" / "molora" / "molora_model.safetensors")
    assert "| experts | `3` |" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("modules", ["all", "attention"])
def test_all_parameters_are_trained(recipe, tmp_path, modules, pico):
    done = train(recipe.replace(method="full", train_modules=modules, learning_rate=1e-2), out=tmp_path / "out")

    assert done.last_loss < done.first_loss - 0.4
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.inference_modules == "attention+other"
    ids = pico.ids()
    with torch.no_grad():
        none = model(ids, inference_modules="none").logits
        assert torch.equal(none, pico.plain("llama")(ids).logits)
        tuned = {mode: model(ids, inference_modules=mode).logits for mode in ("all", "attention", "ffn")}
    assert torch.equal(tuned["ffn"], none) == (modules == "attention")
    assert torch.equal(tuned["all"], tuned["attention"]) == (modules == "attention")
    assert not torch.equal(tuned["attention"], none)


def test_a_tied_head_is_stored_once_and_frozen_tensors_keep_their_bytes(pico, tokenizer, items, tmp_path):
    config = AutoConfig.from_pretrained(pico.base("llama"), tie_word_embeddings=True)
    AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    one = TrainingRecipe(base=str(tmp_path / "base"), data=(items,), batch_size=8, method="full", max_steps=2)

    train(one.replace(train_modules="other"), out=tmp_path / "out")

    index = json.loads((tmp_path / "out" / "dense" / "dense.safetensors.index.json").read_text())
    assert "model.embed_tokens.weight" in index["weight_map"]
    assert all("norm" in name or "embed" in name for name in index["weight_map"])  # no head, and nothing frozen


@pytest.mark.parametrize(
    "changes",
    [{"method": "molora"}, {"method": "full"}, {"packing": True, "max_length": 40, "batch_size": 2, "dropout": 0.3}],
    ids=["molora", "full", "packing"],
)
def test_other_methods_go_on_where_they_stopped(recipe, tmp_path, changes):
    class Stop(Exception):
        pass

    def stop(stage, done, total):
        if stage == "training" and done == 7:
            raise Stop

    one = recipe.replace(**changes, save_steps=5, max_steps=8)
    train(one, out=tmp_path / "straight")
    with pytest.raises(Stop):
        train(one, out=tmp_path / "stopped", progress=stop)
    train(one.replace(gradient_checkpointing=True), out=tmp_path / "stopped")  # changes no weight

    for path in (tmp_path / "straight").rglob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "stopped" / path.relative_to(tmp_path / "straight")).read_bytes()


# --- Killed, refused, full ------------------------------------------------------------------------------------------
def _train_to_step_5(recipe, out, told):
    """Trains, tells of the fifth step, and stays there."""

    def progress(stage, done, total):
        if stage == "training" and done == 5:
            told.send(done)
            time.sleep(600)

    torch.set_num_threads(1)
    train(recipe, out=out, progress=progress)


def test_a_killed_run_ends_with_the_same_weights(recipe, tmp_path):
    one = recipe.replace(save_steps=2, dropout=0.3, micro_batch_size=4, max_steps=7)
    train(one, out=tmp_path / "straight")
    start = multiprocessing.get_context("spawn") if torch.cuda.is_available() else FORKS  # CUDA outlives no fork
    told, tells = start.Pipe(duplex=False)
    running = start.Process(target=_train_to_step_5, args=(one, tmp_path / "killed", tells))
    running.start()
    tells.close()
    assert told.recv() == 5
    running.kill()
    running.join()
    assert (tmp_path / "killed" / WORK / "checkpoint-4" / MARK).is_file()
    half = tmp_path / "killed" / WORK / "checkpoint-6"  # as if the kill came while it was written
    half.mkdir()
    (half / "trainer_state.json").write_text("{")
    with pytest.raises(ConfigError, match="begun with rank 4 instead of 2"):
        train(one.replace(rank=2), out=tmp_path / "killed")
    steps = []

    done = train(one, out=tmp_path / "killed", progress=lambda stage, at, of: steps.append((stage, at)))

    assert ("training", 4) in steps
    assert ("training", 3) not in steps
    assert adapter(tmp_path / "killed") == adapter(tmp_path / "straight")
    losses = [(tmp_path / name / "taia_losses.jsonl").read_text() for name in ("killed", "straight")]
    assert losses[0] == losses[1]
    assert done.is_new


def test_a_full_disk_loses_nothing(recipe, tmp_path, monkeypatch):
    one = recipe.replace(save_steps=2, max_steps=6)
    train(one, out=tmp_path / "straight")
    real, calls = torch.save, []

    def full(*args, **keywords):
        calls.append(args)
        if len(calls) > 5:  # inside the second checkpoint
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*args, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(RepositoryError, match=r"(?s)no space is left.*the same call goes on"):
            train(one, out=tmp_path / "full")
    assert {path.name for path in (tmp_path / "full").iterdir()} == {WORK}

    train(one, out=tmp_path / "full")

    assert adapter(tmp_path / "full") == adapter(tmp_path / "straight")


def test_a_failure_while_the_repository_is_written_leaves_no_half(recipe, tmp_path, monkeypatch):
    from taia_hub.repository import creating

    def fail(*args, **keywords):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(creating, "create_repository", fail)
        with pytest.raises(RepositoryError, match="no space is left"):
            train(recipe.replace(max_steps=2), out=tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {WORK}

    assert train(recipe.replace(max_steps=2), out=tmp_path / "out").is_new


def test_nothing_is_loaded_before_the_data_is_right(recipe, tmp_path, monkeypatch):
    bad = tmp_path / "bad.jsonl"
    bad.write_text(Path(recipe.data[0]).read_text() + '{"messages": 7}\n')

    def loaded(*args, **keywords):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", loaded)
    with pytest.raises(ConfigError, match=r"bad\.jsonl.*41"):
        train(recipe.replace(data=(str(bad),)), out=tmp_path / "out")
    with pytest.raises(SettingError, match="ffn@7"):
        train(recipe.replace(train_modules="ffn@7"), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bad_targets_and_bases_are_refused(recipe, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RepositoryError, match=r"something else already \(notes"):
        train(recipe, out=tmp_path)
    with pytest.raises(RepositoryError, match="is a file"):
        train(recipe, out=tmp_path / "notes.txt")
    with pytest.raises(RepositoryError, match="it is a disk of its own") as caught:
        train(recipe, out=Path("/proc"))  # a mount
    assert "inside it" in caught.value.hint
    with pytest.raises(ConfigError, match="where the trained model shall go"):
        train(recipe)
    with pytest.raises(RepositoryError, match="is no folder here"):
        train(recipe.replace(base=str(tmp_path / "nowhere")), out=tmp_path / "out")
    with pytest.raises(RepositoryError, match="is a folder on this machine"):
        train(recipe, push="own/model")
    assert {path.name for path in tmp_path.iterdir()} == {"notes.txt"}


def test_a_folder_above_that_cannot_be_written_is_named(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    with pytest.raises(RepositoryError, match=f"Nothing can be written into '{tmp_path}'") as caught:
        train(recipe, out=tmp_path / "out")
    assert "inside it" not in caught.value.hint


def test_a_disk_that_is_too_small_is_said_before_the_first_step(recipe, tmp_path, monkeypatch):
    plan = plan_training(recipe)
    needed = 2 * (4 + 8) * sum(plan.trained.values()) + 4 * sum(plan.trained.values())
    free = needed - 1
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": free}))
    shown = []
    with pytest.raises(RepositoryError, match=r"two checkpoints, needs .* more at .*, where .* are free"):
        train(recipe, out=tmp_path / "out", on_plan=shown.append)
    assert [one.steps for one in shown] == [plan.steps]
    free = needed
    assert train(recipe, out=tmp_path / "out").steps == plan.steps


def test_a_loss_that_is_no_number_stops_the_run(recipe, tmp_path):
    with pytest.raises(ConfigError, match=r"The loss is (nan|inf) at step"):
        train(recipe.replace(learning_rate=1e20, warmup_ratio=0, scheduler="constant"), out=tmp_path / "out")


def test_trackers_are_looked_for_first():
    with pytest.raises(ConfigError, match="Did you mean 'wandb'"):
        check_trackers(("wandbb",))
    with pytest.raises(MissingDependencyError, match="pip install comet_ml"):
        check_trackers(("comet_ml",))


# --- Against a loop by hand -----------------------------------------------------------------------------------------
def test_steps_loss_and_schedule_are_those_of_a_plain_loop(recipe, tmp_path, pico, tokenizer):
    one = recipe.replace(method="full", learning_rate=1e-2, warmup_ratio=0.2, epochs=1.025, micro_batch_size=2)
    done = train(one.replace(dtype="float32"), out=tmp_path / "out")

    rows, encoder = prepare_data(one).train, Encoder(tokenizer)
    encoded = [encoder.encode(messages) for messages in rows["messages"]]
    model = pico.plain("llama", dtype=torch.float32).train().requires_grad_()
    steps, losses = math.ceil(len(encoded) / 8), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, int(0.2 * steps), steps)
    for step in range(steps):
        batch = encoded[8 * step : 8 * step + 8]
        parts, count = [], sum(label != IGNORED_LABEL for item in batch for label in item.labels)
        for item in batch:
            logits = model(torch.tensor([item.input_ids])).logits[0, :-1]
            labels = torch.tensor(item.labels[1:])
            parts.append(torch.nn.functional.cross_entropy(logits, labels, reduction="sum") / count)
        loss = torch.stack(parts).sum()
        loss.backward()
        losses.append(loss.item())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()

    assert (len(encoded), done.steps) == (41, 6)
    assert (done.first_loss, done.last_loss) == pytest.approx((losses[0], losses[-1]), rel=1e-5)
    trained = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        found = trained(pico.ids(), inference_modules="all").logits
        torch.testing.assert_close(found, model.eval()(pico.ids()).logits, atol=1e-4, rtol=1e-4)


# --- Batches ----------------------------------------------------------------------------------------------------
def test_the_batch_is_the_same_however_it_is_divided(recipe, tmp_path):
    one = recipe.replace(dropout=0.0, dtype="float32", max_steps=3)
    train(one.replace(micro_batch_size=8), out=tmp_path / "whole")
    train(one.replace(micro_batch_size=2), out=tmp_path / "parts")

    whole, parts = tensors(tmp_path / "whole"), tensors(tmp_path / "parts")
    assert all(torch.allclose(whole[name], parts[name], atol=1e-5) for name in whole)


@pytest.mark.parametrize("given", [None, 8])
def test_the_micro_batch_is_halved_when_memory_runs_out(recipe, tmp_path, monkeypatch, given):
    recipe = recipe.replace(max_steps=2, micro_batch_size=given)
    train(recipe.replace(micro_batch_size=2), out=tmp_path / "two")
    real, sizes = SFTTrainer.training_step, []

    def small(self, model, inputs, *args, **keywords):
        sizes.append(len(inputs["input_ids"]))
        assert len(sizes) < 30
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return real(self, model, inputs, *args, **keywords)

    monkeypatch.setattr(SFTTrainer, "training_step", small)
    train(recipe, out=tmp_path / "out")

    assert sizes[:3] == [8, 4, 2]
    assert adapter(tmp_path / "out") == adapter(tmp_path / "two")
    assert json.loads((tmp_path / "out" / "taia_training.json").read_text())["hyperparameters"]["micro_batch_size"] == 2


def test_when_one_item_is_too_much_the_error_says_what_to_do(recipe, tmp_path, monkeypatch):
    def never(self, *args, **keywords):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    monkeypatch.setattr(SFTTrainer, "training_step", never)
    with pytest.raises(OutOfMemoryError, match="1 items of up to"):
        train(recipe.replace(micro_batch_size=1), out=tmp_path / "out")


def test_packed_items_do_not_see_each_other(recipe, tmp_path):
    one = recipe.replace(dropout=0.0, dtype="float32", epochs=1, scheduler="constant", warmup_ratio=0)
    apart = train(one.replace(batch_size=40, micro_batch_size=40), out=tmp_path / "apart")
    packed = train(one.replace(packing=True, max_length=2000, batch_size=1), out=tmp_path / "packed")

    assert packed.steps == apart.steps == 1
    assert packed.first_loss == pytest.approx(apart.first_loss, rel=1e-5)
    assert packed.tokens == apart.tokens


@pytest.mark.parametrize("name", ["opt", "jamba", "qwen3_next"])
def test_packing_is_refused_where_items_would_see_each_other(pico, tokenizer, items, tmp_path, name):
    base = shutil.copytree(pico.base(name), tmp_path / "base")
    tokenizer.save_pretrained(base)
    one = TrainingRecipe(base=str(base), data=(items,), batch_size=1, packing=True, max_length=60)
    with pytest.raises(ConfigError, match=f"packing cannot be used with a model of type '{name}'"):
        train(one, out=tmp_path / "out")


def test_bfloat16_computes_in_bfloat16(recipe, tmp_path):
    done = train(recipe.replace(dtype="bfloat16", gradient_checkpointing=True), out=tmp_path / "out")

    assert done.last_loss < done.first_loss - 0.4
    assert {tensor.dtype for tensor in tensors(tmp_path / "out").values()} == {torch.float32}


# --- What is trained ----------------------------------------------------------------------------------------------
def skeleton(pico, name):
    from taia_hub import hub
    from taia_hub.weights.skeleton import skeleton

    folder = pico.base(name)
    return skeleton(hub.Source(str(folder), folder, None), hub.HubAccess())


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "gpt_neox", "mixtral", "qwen2_moe", "jamba", "qwen3_next"])
def test_lora_adapts_attention_and_ffn_and_nothing_else(pico, name):
    from peft import LoraConfig, get_peft_model

    one = TrainingRecipe(rank={"attention": 2, "ffn": 3}, alpha={"attention": 2, "ffn": 6}, dropout=0.1)
    bare = skeleton(pico, name)
    placed, selection = find_sublayers(bare), select(bare, one)
    model = get_peft_model(bare, LoraConfig(**lora_arguments(selection, one, bare)))

    adapted = {}
    for path, module in model.base_model.model.named_modules():
        if "default" in getattr(module, "r", {}):
            module_path = path.replace(".base_layer", "")
            adapted.setdefault(module_path, []).append((module.r["default"], module.scaling["default"]))
    expected = {target.path.rpartition(".")[0] if target.is_experts else target.path for target in selection.targets}
    assert set(adapted) == expected
    for path, found in adapted.items():
        assert placed.roles[path] in ("attention", "ffn")
        assert set(found) == ({(2, 1.0)} if placed.roles[path] == "attention" else {(3, 2.0)})
    counted = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert counted == sum(trained_parameters(selection, one).values())
    assert not any("lm_head" in path or "embed" in path for path in adapted)
    assert any("dropout is 0" in note for note in selection.notes) == any(one.is_experts for one in selection.targets)


@pytest.mark.parametrize(
    ("modules", "expected"),
    [
        ("attention", {"0.self_attn", "1.self_attn"}),
        ("ffn@1", {"1.mlp"}),
        ("attention+ffn@0-0", {"0.self_attn", "1.self_attn", "0.mlp"}),
        ("model.layers.1.mlp.up_proj", {"1.mlp"}),
    ],
)
def test_layers_and_roles_are_selected(pico, modules, expected):
    from peft import LoraConfig, get_peft_model

    one, bare = TrainingRecipe(train_modules=modules), skeleton(pico, "llama")
    arguments = lora_arguments(select(bare, one), one, bare)
    model = get_peft_model(bare, LoraConfig(**arguments))

    names = {name.split("layers.")[1].rsplit(".", 4)[0] for name, _ in model.named_parameters() if "lora_A" in name}
    assert {".".join(name.split(".")[:2]) for name in names} == expected
    if modules == "attention":  # the short form that other engines read
        assert arguments["target_modules"] == ["k_proj", "o_proj", "q_proj", "v_proj"]


def test_what_cannot_be_trained_is_refused(pico):
    bare = skeleton(pico, "llama")
    with pytest.raises(SettingError, match="names 'other'"):
        select(bare, TrainingRecipe(train_modules="attention+other"))
    with pytest.raises(SettingError, match=r"lm\.head"):
        select(bare, TrainingRecipe(train_modules="attention+lm.head"))
    with pytest.raises(SettingError, match="adapted ffn modules are in layers 0-1"):
        select(bare, TrainingRecipe(train_modules="ffn@2-3"))


def test_full_fine_tuning_can_train_everything_or_a_role(pico):
    bare = skeleton(pico, "llama")
    whole = sum(parameter.numel() for parameter in bare.parameters())

    everything = TrainingRecipe(method="full")
    assert sum(trained_parameters(select(bare, everything), everything).values()) == whole
    attention = TrainingRecipe(method="full", train_modules="attention")
    assert trained_parameters(select(bare, attention), attention).keys() == {"attention"}


# --- Plans, words and devices -------------------------------------------------------------------------------------
def test_a_plan_says_what_the_run_does(recipe, tmp_path):
    plan = plan_training(recipe)
    done = train(recipe, out=tmp_path / "out")

    assert (plan.steps, plan.items, plan.tokens) == (done.steps, 80, done.tokens)
    assert plan.trained == done.trained_parameters
    assert plan.micro_batch_size * plan.accumulation == 8


@pytest.mark.parametrize("name", ["ddp", "fsdp", "deepspeed"])
def test_accelerate_reads_the_configurations(name):
    config = load_config_from_file(str(CONFIGS / f"{name}.yaml"))

    assert config.num_processes == 2
    assert config.mixed_precision in ("no", None)
    if name == "fsdp":
        assert config.fsdp_config["fsdp_version"] == 2
    if name == "deepspeed":
        assert (CONFIGS / config.deepspeed_config["deepspeed_config_file"]).is_file()
        assert json.loads((CONFIGS / "deepspeed.json").read_text())["zero_optimization"]["stage"] == 3


@pytest.mark.slow
def test_two_processes_train_what_one_does(recipe, tmp_path):
    one = recipe.replace(
        dropout=0.0, dtype="float32", micro_batch_size=2, epochs=1.93
    )  # 77 items: the last step is not whole
    (tmp_path / "recipe.yaml").write_text(one.to_yaml())
    train(one.replace(micro_batch_size=4), out=tmp_path / "one")
    root = str(Path(taia_hub.__file__).parents[1])
    # On CPUs accelerate's own launcher starts several processes through MPI alone; torch's does without.
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "taia_hub.training"]
    words += [str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "two"), "--json"]
    ran = subprocess.run(
        [sys.executable, *words],
        env={**os.environ, "PYTHONPATH": root, "ACCELERATE_USE_CPU": "true"},
        cwd=tmp_path,
        text=True,
        capture_output=True,
        timeout=300,
    )

    assert ran.returncode == 0, ran.stderr[-3000:]
    assert json.loads(ran.stdout)["steps"] == 10
    single, double = tensors(tmp_path / "one"), tensors(tmp_path / "two")
    assert all(torch.allclose(single[name], double[name], atol=1e-5) for name in single)
    assert json.loads((tmp_path / "two" / "taia_training.json").read_text())["hardware"]["processes"] == 2


def test_what_cannot_be_gathered_is_not_sharded():
    check_sharding(TrainingRecipe(method="lora"), sharded=True)
    check_sharding(TrainingRecipe(method="molora"), sharded=False)
    with pytest.raises(UnsupportedUpdateError, match="MoLoRA cannot be trained on a model that is sharded"):
        check_sharding(TrainingRecipe(method="molora"), sharded=True)


def test_trl_missing_is_said_first(recipe, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(MissingDependencyError, match=r"pip install .*\[train\]"):
        train(recipe, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_path_is_no_recipe(tmp_path):
    with pytest.raises(ConfigError, match=r"'lora.yaml' came as the recipe; a TrainingRecipe is expected"):
        train("lora.yaml", out=tmp_path / "out")
