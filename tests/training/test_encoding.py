"""Which tokens are trained: where answers end, what data says of its turns, and ids without embeddings."""

import copy
import json
from types import SimpleNamespace

import pytest
import torch
from tokenizers import processors
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from taia_hub.common.chat import chat_tokens
from taia_hub.common.forms import find_form, to_messages
from taia_hub.common.jsonl import LineError
from taia_hub.common.labels import IGNORED_LABEL
from taia_hub.compare import compare
from taia_hub.compare.prompting import encode_prompt, read_messages
from taia_hub.errors import ConfigError, RepositoryError
from taia_hub.evaluation.harness import make_lm
from taia_hub.evaluation.prompts import generate_responses
from taia_hub.training import TrainingRecipe, plan_training, train
from taia_hub.training.encoding import Encoder
from taia_hub.training.ending import ends

ASK = {"role": "user", "content": "the sea"}
SAY = {"role": "assistant", "content": "a hat"}
LEFT_OUT = {"role": "assistant", "content": "no", "train": False}
EOT = (
    "{% for m in messages %}{{ m.role }} {{ m.content }}END {% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)
OPEN = EOT.replace("END", "")
MARKED = (
    "{% for m in messages %}{{ m.role }} {% if m.role == 'assistant' %}{% generation %}{{ m.content }}END "
    "{% endgeneration %}{% else %}{{ m.content }}END {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)
THINKING = (
    "{% for m in messages %}{{ m.role }} "
    "{% if m.reasoning_content and loop.last %}[{{ m.reasoning_content }}]{% endif %}"
    "{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}assistant {% endif %}"
)
TOOLS = "{% for t in tools or [] %}{{ t.function.name }} {% endfor %}" + EOT


def made(tokenizer, template=None, *, bos=False, **special):
    """Returns a copy with a template, `END` as an added token, and a token before every text where `bos`."""
    own = copy.deepcopy(tokenizer)
    own.add_tokens(["END"], special_tokens=True)
    own.chat_template = template
    if bos:
        own.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
        )
    for name, value in special.items():
        setattr(own, name, value)
    return own


def trained(encoder, messages):
    """Returns the texts of the runs of trained tokens."""
    encoded, runs = encoder.encode(messages), [[]]
    assert len(encoded.input_ids) == len(encoded.labels)
    for label in encoded.labels:
        if label == IGNORED_LABEL:
            runs.append([])
        else:
            runs[-1].append(label)
    return [encoder.tokenizer.decode(run) for run in runs if run]


# --- One answer for every prompt --------------------------------------------------------------------------------------
@pytest.mark.parametrize("template", [None, EOT, "<s>" + EOT, "<s>" + OPEN, MARKED])
@pytest.mark.parametrize("bos", [False, True])
def test_every_path_makes_the_same_tokens_of_the_same_messages(tokenizer, pico, monkeypatch, template, bos):
    encoder = Encoder(made(tokenizer, template, bos=bos))
    own, model, asked = encoder.tokenizer, pico.plain("llama"), []
    monkeypatch.setattr(type(model), "generate", lambda _, input_ids, **__: (asked.append(input_ids), input_ids)[1])
    encoded = encoder.encode([ASK, SAY])
    start = next(at for at, label in enumerate(encoded.labels) if label != IGNORED_LABEL)
    generate_responses(model, own, [ASK["content"]])
    lm = make_lm(model, copy.deepcopy(own), batch_size=1, chat=True)
    text = lm.apply_chat_template([ASK])
    paths = {
        "compare, chat and page": encode_prompt(model, own, read_messages(ASK["content"])).input_ids[0].tolist(),
        "demo": chat_tokens(own, [ASK]),
        "prompts": asked[0][0].tolist(),
        "lm-eval, likelihoods": lm.tok_encode(text),
        "lm-eval, answers": lm.tok_batch_encode([text])[0][0].tolist(),
        "transformers": list(own.apply_chat_template([ASK], add_generation_prompt=True, return_dict=True)["input_ids"]),
    }
    assert paths == dict.fromkeys(paths, encoded.input_ids[:start])
    assert encoded.input_ids.count(own.bos_token_id) == ("<s>" in (template or "") or (bos and template is None))


def test_plain_text_begins_as_the_tokenizer_begins_every_text_and_is_never_ended(tokenizer):
    own = made(tokenizer)
    own.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A $B </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    assert chat_tokens(own, [ASK]) == [1, *own("the sea", add_special_tokens=False)["input_ids"]]


# --- Answers end ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("only", [True, False])
@pytest.mark.parametrize(("template", "end"), [(EOT, "END"), (MARKED, "END"), (OPEN, "</s>"), (None, "</s>")])
def test_every_answer_ends_with_one_token_and_nothing_is_trained_behind_it(tokenizer, template, end, only):
    encoder = Encoder(made(tokenizer, template), assistant_only=only)
    assert encoder.tokenizer.convert_ids_to_tokens(encoder.end) == end
    runs = trained(encoder, [ASK, SAY, ASK, SAY])
    if only:
        assert runs == [f"a hat{end}"] * 2
    else:
        assert runs[0].count(f"a hat{end}") == 2


def test_an_end_that_is_no_token_of_the_tokenizer_is_none(tokenizer):
    encoder = Encoder(made(tokenizer, EOT.replace("END", " stop")))
    assert encoder.tokenizer.convert_ids_to_tokens(encoder.end) == "</s>"
    assert "ends no answer" in encoder.notes[0]


def test_a_tokenizer_whose_padding_is_its_end_trains_the_end(tokenizer):
    encoder = Encoder(made(tokenizer, pad_token="</s>"))
    assert trained(encoder, [ASK, SAY]) == ["a hat</s>"]


def test_without_any_end_nothing_is_trained(tokenizer):
    for template in (None, OPEN):
        with pytest.raises(ConfigError, match="no answer would ever end"):
            Encoder(made(tokenizer, template, eos_token=None))
    assert Encoder(made(tokenizer, EOT, eos_token=None)).end is not None


def test_templates_by_names_without_a_default_are_refused(tokenizer):
    for names in ({"rag": EOT, "tool_use": EOT}, {"tool_use": OPEN}):
        with pytest.raises(ConfigError, match="no default"):
            Encoder(made(tokenizer, names))
    assert Encoder(made(tokenizer, {"default": EOT, "tool_use": "x"})).end is not None


def test_the_given_tokenizer_stays_as_it_is(tokenizer):
    own = made(tokenizer, OPEN)
    assert "eos_token" in Encoder(own).tokenizer.chat_template
    assert own.chat_template == OPEN


@pytest.mark.parametrize(
    ("present", "end", "expected"),
    [(2, 5, [2, 5]), ([2, 5], 5, [2, 5]), (None, 5, 5), (None, None, None), ([2], None, 2)],
)
def test_ends_are_added_to_those_of_the_base(present, end, expected):
    assert ends(present, end) == expected


@pytest.fixture
def base(pico, tmp_path):
    """Makes the folder of a base model with a tokenizer, of some rows."""

    def make(tokenizer, rows=None):
        model = AutoModelForCausalLM.from_pretrained(pico.base("llama"))
        if rows:
            model.resize_token_embeddings(rows, mean_resizing=False)
        model.save_pretrained(tmp_path / "base")
        tokenizer.save_pretrained(tmp_path / "base")
        return str(tmp_path / "base")

    return make


def recipe(base, folder, items, **fields):
    path = folder / "items.jsonl"
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    fields = {"max_steps": 1, "dtype": "float32", "batch_size": 4, **fields}
    return TrainingRecipe(base=base, data=(str(path),), **fields)


def test_the_end_of_answers_is_published_and_stops_generation(base, tokenizer, tmp_path):
    end = len(tokenizer)
    folder = base(made(tokenizer, EOT))
    one = recipe(
        folder,
        tmp_path,
        [{"messages": [{"role": "user", "content": "the"}, {"role": "assistant", "content": "a"}]}] * 4,
        learning_rate=0.02,
        max_steps=30,
        epochs=30,
        warmup_ratio=0.0,
        inference_modules="all",
    )
    done = train(one, out=tmp_path / "out")
    assert GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id == [2, end]
    assert not any("no END" in note for note in done.notes)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    own = AutoTokenizer.from_pretrained(tmp_path / "out")
    answer = compare(model, own, "the", ["all"], max_new_tokens=20, measures=False).answers[0]
    assert len(answer.tokens) < 20
    model.merge(tmp_path / "merged", "all")
    assert GenerationConfig.from_pretrained(tmp_path / "merged").eos_token_id == [2, end]
    model.export_adapter(tmp_path / "export", "all")
    assert f"give `eos_token_id=[2, {end}]`" in (tmp_path / "export" / "README.md").read_text().replace("\\", "")


def test_a_model_that_does_not_stop_is_told_of_and_published_all_the_same(base, tokenizer, tmp_path):
    done = train(
        recipe(base(made(tokenizer, OPEN)), tmp_path, [{"prompt": "a", "completion": "b"}] * 4), out=tmp_path / "out"
    )
    assert any("no </s>, which ends the answers" in note for note in done.notes)
    (note,) = [one for one in done.notes if "ends no answer" in one]
    assert note.endswith("is put behind each. The published model's template says so.")
    published = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert published.apply_chat_template([ASK, SAY], tokenize=False).count("</s>") == 1


# --- Data says what it says -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("template", [EOT, MARKED, None])
def test_a_turn_that_is_left_out_is_read_and_not_trained_on(tokenizer, template):
    encoder = Encoder(made(tokenizer, template))
    end = encoder.tokenizer.convert_ids_to_tokens(encoder.end)
    assert trained(encoder, [ASK, LEFT_OUT, ASK, SAY]) == [f"a hat{end}"]
    assert trained(encoder, [ASK, SAY, ASK, LEFT_OUT]) == [f"a hat{end}"]
    said = encoder.encode([ASK, LEFT_OUT, ASK, SAY]).input_ids
    assert said == encoder.encode([ASK, {**LEFT_OUT, "train": True}, ASK, SAY]).input_ids


def test_a_turn_is_left_out_of_whole_conversations_too(tokenizer):
    encoder = Encoder(made(tokenizer, EOT), assistant_only=False)
    runs = trained(encoder, [{**ASK, "train": False}, LEFT_OUT, ASK, SAY])
    assert "no" not in "".join(runs)
    assert "".join(runs).count("the sea") == 1
    assert "a hatEND" in "".join(runs)


def turns(*more, **item):
    return {"messages": [dict(ASK), {**SAY, **(more[0] if more else {})}], **item}


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        (turns({"weight": 1, "train": True}), {}),
        (turns({"weight": 1.0, "reasoning_content": ""}), {}),
        (turns({"thinking": "so"}), {"reasoning": "so"}),
        (turns({"reasoning": "so", "reasoning_content": "so"}), {"reasoning": "so"}),
        (
            {"conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y", "thinking": "z"}]},
            {"reasoning": "z"},
        ),
        ({"prompt": "x", "completion": "y", "reasoning_content": "z"}, {"reasoning": "z"}),
        (turns(id=4, category="sea", tools=[], images=None), {}),
    ],
)
def test_what_a_turn_says_is_carried(item, expected):
    last = to_messages(item, find_form(item))[-1]
    assert {key: value for key, value in last.items() if key not in ("role", "content")} == expected


def test_a_weight_of_nought_is_carried_and_tools_go_with_the_first_turn():
    item = {"messages": [ASK, {**SAY, "weight": 0}, ASK, SAY], "tools": '[{"function": {"name": "look"}}]'}
    messages = to_messages(item, find_form(item))
    assert [message.get("train", True) for message in messages] == [True, False, True, True]
    assert json.loads(messages[0]["tools"]) == [{"function": {"name": "look"}}]


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (turns({"weight": 0.5}), "turn 2 has 0.5 as 'weight'; it is 0 or 1"),
        (turns({"train": "perhaps"}), "as 'train'"),
        (turns({"weight": 1, "train": False}), "contradict"),
        (turns({"weight": 0}), "none of its answers is to be trained on"),
        ({"messages": [{**ASK, "train": True}, SAY]}, "turn 1 of the user is to be trained on"),
        ({"messages": [{"role": "system", "content": "x", "weight": 1}, ASK, SAY]}, "turn 1 of the system"),
        ({"messages": [{**ASK, "thinking": "hm"}, SAY]}, "turn 1 of the user has reasoning"),
        (turns({"loss_mask": [1]}), "'loss_mask', which is not heard of"),
        ({"prompt": "Go", "completion": "No", "label": False}, "'label' that its answer is not wanted"),
        ({"instruction": "Go", "output": "No", "kto_tag": "false"}, "'kto_tag' that its answer is not wanted"),
        ({"messages": [ASK, SAY], "mask_history": True}, "'mask_history', which is not heard of"),
        (turns({"content": None, "tool_calls": [{"function": {"name": "f"}}]}), "calls a tool"),
        (turns(functions=[{"name": "f"}]), "give them as 'tools'"),
        (turns(tools=[{"type": "function"}]), "no list of functions with names"),
        (turns(tools="look"), "no list of functions with names"),
        (turns(images=["a.png"]), "only texts can be trained on"),
        (turns(reasoning_content="why"), "reasoning outside its turns"),
        (turns({"reasoning": "a", "thinking": "b"}), "several texts of reasoning"),
        ({"instruction": "x", "output": "y", "weight": 0}, "not to be trained on"),
        (turns(chat_template_kwargs={"enable_thinking": True}), "chat_template_kwargs"),
    ],
)
def test_what_cannot_be_honoured_is_refused(item, reason):
    with pytest.raises(LineError, match=reason):
        to_messages(item, find_form(item))


def test_reasoning_is_trained_where_the_template_writes_it_and_refused_elsewhere(tokenizer):
    said = {**SAY, "reasoning": "so be it"}
    assert trained(Encoder(made(tokenizer, THINKING)), [ASK, said]) == ["<unk>so be it<unk>a hat</s>"]
    with pytest.raises(ConfigError, match="leaves out reasoning"):
        Encoder(made(tokenizer, EOT)).encode([ASK, said])
    encoder = Encoder(made(tokenizer, THINKING))
    with pytest.raises(ConfigError, match="leaves out reasoning"):  # of all turns but the last
        encoder.encode([ASK, {**said, "reasoning": "why not"}, ASK, said])
    assert trained(encoder, [ASK, {**said, "train": False}, ASK, said]) == ["<unk>so be it<unk>a hat</s>"]


def test_thoughts_in_an_answer_that_the_template_strips_are_refused(tokenizer):
    strips = EOT.replace("m.content", "m.content.split('</think>')[-1]")
    with pytest.raises(ConfigError, match="leaves out reasoning"):
        Encoder(made(tokenizer, strips)).encode([ASK, {**SAY, "content": "<think>so</think>a hat"}])


def test_tools_are_read_where_the_template_writes_them_and_refused_elsewhere(tokenizer):
    first = {**ASK, "tools": json.dumps([{"function": {"name": "look"}}])}
    encoder = Encoder(made(tokenizer, TOOLS))
    assert encoder.tokenizer.decode(encoder.encode([first, SAY]).input_ids).startswith("look user")
    with pytest.raises(ConfigError, match=r"leaves out the tools \(look\)"):
        Encoder(made(tokenizer, EOT)).encode([first, SAY])


# --- What a dry run promises ------------------------------------------------------------------------------------------
def test_ids_without_an_embedding_are_refused_before_anything_is_done(base, tokenizer, tmp_path, pico):
    own = made(tokenizer, EOT)
    rows = len(own) - 1
    one = recipe(base(own, rows), tmp_path, [{"prompt": "a", "completion": "b"}] * 4)
    said = rf"the id {rows} \('END'\); the model has embeddings of {rows} tokens"
    for run in (plan_training, train):
        with pytest.raises(ConfigError, match=said):
            run(one, out=tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(one.base)
    with pytest.raises(ConfigError, match=said):
        encode_prompt(model, own, (ASK,))
    with pytest.raises(ConfigError, match=said):
        generate_responses(model, own, ["a"])
    lm = make_lm(model, copy.deepcopy(own), batch_size=1, chat=True)
    for encode in (lm.tok_encode, lambda text: lm.tok_batch_encode([text])):
        with pytest.raises(ConfigError, match=said):
            encode("aEND")


def test_a_padding_token_without_an_embedding_is_not_padded_with(base, tokenizer, tmp_path):
    own = made(tokenizer, None, pad_token="END")
    folder = base(own, len(own) - 1)
    done = train(
        recipe(folder, tmp_path, [{"prompt": "a" * n, "completion": "b"} for n in range(1, 5)]), out=tmp_path / "out"
    )
    assert done.steps == 1
    model, published = (one.from_pretrained(tmp_path / "out") for one in (AutoModelForCausalLM, AutoTokenizer))
    assert published.pad_token == "END"
    assert len(generate_responses(model, published, ["a", "the sea"], max_new_tokens=2)) == 2
    assert torch.isfinite(model(torch.tensor([[3]])).logits).all()


def test_a_dry_run_counts_every_token_and_knows_the_longest_item(base, tokenizer, tmp_path):
    items = [{"prompt": "a", "completion": "b"}] * 300
    items[7] = {"prompt": "a" * 90, "completion": "b"}
    one = recipe(base(tokenizer), tmp_path, items, max_steps=None, epochs=1)
    plan = plan_training(one, out=tmp_path / "out")
    assert (plan.longest, plan.items) == (94, 300)
    assert plan.tokens == 299 * 5 + 94


def test_a_dry_run_asks_for_the_room_of_checkpoints(base, tokenizer, tmp_path, monkeypatch):
    one = recipe(base(tokenizer), tmp_path, [{"prompt": "a", "completion": "b"}] * 4)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1))
    with pytest.raises(RepositoryError, match="checkpoints"):
        plan_training(one, out=tmp_path / "out")
