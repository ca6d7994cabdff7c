import json
import signal
import subprocess
import sys
import time
import urllib.request
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from taia_hub import TAIAConfig, TAIAForCausalLM, cli
from taia_hub.cli import main
from taia_hub.compare import stream_compare
from taia_hub.demo.runner import DEFAULT_STEPS
from taia_hub.errors import ConfigError
from taia_hub.switch.modes import MODES
from tests.tuning_samples import tuned


def test_the_console_script_is_this_module():
    (script,) = entry_points(group="console_scripts", name="taia")
    assert script.load() is cli.main


@pytest.mark.parametrize(
    "command",
    [
        *("", "create", "push", "info", "generate", "eval", "analyze", "card", "compare"),
        *("space", "space create", "demo", "hub", "hub serve"),
    ],
)
def test_every_command_has_help(taia, command):
    status, out, _ = taia(*command.split(), "--help")
    assert status == 0
    assert "Usage" in out


def test_what_was_published_without_an_owner_is_named_whole(taia, online, repo_id, tmp_path):
    name = repo_id.rpartition("/")[2]
    owner = online.api.whoami()["name"]
    out = taia("create", online.base, online.adapter, "--push", name, "--link")[1]
    assert f"Next: taia compare {owner}/{name} " in out
    assert taia("create", online.base, online.adapter, "--out", tmp_path / "made")[0] == 0
    assert f"Next: taia compare {owner}/{name}-2 " in taia("push", tmp_path / "made", f"{name}-2")[1]


def test_version(taia):
    from taia_hub import __version__

    assert taia("--version") == (0, f"taia-hub {__version__}\n", "")


def test_create_writes_a_folder_that_loads(taia, online, tmp_path, pico):
    status, out, _ = taia("create", online.base, online.adapter, "--out", tmp_path / "made", "--mode", "all")
    assert status == 0
    assert "attention" in out
    assert str(tmp_path / "made") in out
    assert f"Next: taia compare {tmp_path / 'made'} " in out
    assert "other" not in out  # no rows of zeros
    made = AutoModelForCausalLM.from_pretrained(tmp_path / "made")
    assert made.inference_modules == "all"
    other = AutoModelForCausalLM.from_pretrained(online.taia, inference_modules="all")
    assert torch.equal(made(pico.ids()).logits, other(pico.ids()).logits)
    assert AutoTokenizer.from_pretrained(tmp_path / "made").encode("the") == (
        AutoTokenizer.from_pretrained(online.base).encode("the")
    )


def test_create_keeps_the_adapters_bytes_and_the_bases_generation_config(taia, online, tmp_path, pico):
    base = tmp_path / "base"
    plain = pico.plain("llama")
    plain.generation_config.update(do_sample=True, top_k=7)
    plain.save_pretrained(base)
    adapter = pico.adapter("llama")
    assert taia("create", base, adapter, "--out", tmp_path / "made")[0] == 0
    weights = "adapter_model.safetensors"
    assert (tmp_path / "made/adapter" / weights).read_bytes() == (adapter / weights).read_bytes()
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "made").generation_config.top_k == 7


def test_create_links_to_an_adapter_on_the_hub(taia, online, repo_id, pico):
    status, out, _ = taia("create", online.base, online.adapter, "--push", repo_id, "--link", "--json")
    assert status == 0
    assert repo_id in json.loads(out)["where"]
    assert not any(name.startswith("adapter") for name in online.api.list_repo_files(repo_id))
    linked = AutoModelForCausalLM.from_pretrained(repo_id)
    assert linked.taia_config.update["repo"] == online.adapter
    copied = AutoModelForCausalLM.from_pretrained(online.taia)
    assert torch.equal(linked(pico.ids()).logits, copied(pico.ids()).logits)


def test_create_needs_exactly_one_place(taia, online, tmp_path):
    for places in ([], ["--out", tmp_path / "made", "--push", "own/made"]):
        status, _, err = taia("create", online.base, online.adapter, *places)
        assert status == 1
        assert "either a folder" in err
        assert "Hint: Use --out DIR or --push REPO." in err


def test_a_link_to_a_folder_is_refused(taia, online, tmp_path, pico):
    status, _, err = taia("create", online.base, pico.adapter("llama"), "--out", tmp_path / "made", "--link")
    assert status == 1
    assert "needs an adapter on the Hub" in err
    assert not (tmp_path / "made").exists()


def test_push_publishes_a_folder_with_a_card_of_its_own_name(taia, online, tmp_path, repo_id):
    taia("create", online.base, online.adapter, "--out", tmp_path / "made")
    online.hub.requests.clear()
    status, out, _ = taia("push", tmp_path / "made", repo_id, "--json")
    assert status == 0
    assert json.loads(out)["commit"] == online.api.model_info(repo_id).sha
    assert len(online.commits()) == 1
    card = Path(online.api.hf_hub_download(repo_id, "README.md")).read_text()
    assert f"# {repo_id}" in card
    assert "license_name: pico-1.0" in card


def test_info_reads_no_weights(taia, online, tmp_path):
    status, out, _ = taia("info", online.taia, "--json")
    assert status == 0
    found = json.loads(out)
    model = AutoModelForCausalLM.from_pretrained(online.taia)
    for role, part in model.status().roles.items():
        assert found["roles"][role]["modules"] == part.adapted
        assert found["roles"][role]["parameters"] == part.parameters
    assert found["modes"]["all"] == sum(part.parameters for part in model.status().roles.values())
    assert found["base_model"] == online.base
    assert found["base_revision"] == online.base_sha


def test_info_fetches_only_the_header_of_the_weights(online, taia, empty_cache):
    status, out, err = taia("info", online.taia)
    assert status == 0, err
    assert "attention" in out
    fetched = [path for method, path in online.hub.requests if method == "GET" and "/resolve/" in path]
    assert any(path.startswith(f"/{online.base}/") for path in fetched)  # nothing was in a cache
    assert not any(path.startswith(f"/{online.base}/") and path.endswith(".safetensors") for path in fetched)


def test_info_of_a_folder(taia, online, tmp_path):
    taia("create", online.base, online.adapter, "--out", tmp_path / "made")
    status, out, _ = taia("info", tmp_path / "made")
    assert status == 0
    assert "LoRA in adapter, rank 4, alpha 6, " in out
    assert f"{sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(online.base).parameters()):,} param" in out
    assert "KiB" in out
    rows = [line.split()[0] for line in out.splitlines() if line]
    assert rows == ["repository", "base", "tokenizer", "update", "default", "role", "attention", "ffn", "mode", *MODES]


def test_info_says_whether_the_default_was_tuned(taia, online, saved_copy, repo_id):
    found = tuned(layers=80)
    found.save(saved_copy)
    assert "default     attention; taia tune chose 'tuned 2', 2026-11-21\n" in taia("info", saved_copy)[1]
    label = publish_setting(saved_copy, found.recommended.setting)
    assert label.startswith("160 weights (")
    assert f"default     {label}, 'tuned 2' of taia tune, 2026-11-21\n" in taia("info", saved_copy)[1]
    (saved_copy / "taia_tuning.json").write_text("{")
    assert json.loads(taia("info", saved_copy, "--json")[1])["tuning"] is None
    online.model().push_to_hub(repo_id)
    online.api.upload_file(
        path_or_fileobj=json.dumps(tuned(chosen="attention").to_json()).encode(),
        path_in_repo="taia_tuning.json",
        repo_id=repo_id,
    )
    assert "default     attention, chosen by taia tune, 2026-11-21\n" in taia("info", repo_id)[1]


def publish_setting(folder, setting):
    config = TAIAConfig.from_pretrained(folder)
    config.inference_modules = setting
    config.save_pretrained(folder)
    return config.setting.label


def test_info_of_a_plain_adapter(taia, online, pico, tmp_path):
    ranks = {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 3}}
    lora = pico.adapter("llama", pico.lora("llama", **ranks), label="ranks")
    for adapter in (online.adapter, lora):
        status, out, err = taia("info", adapter, "--json")
        assert status == 0, err
        found = json.loads(out)
        model = TAIAForCausalLM.from_pretrained(adapter)
        assert {role: part["parameters"] for role, part in found["roles"].items()} == {
            role: part.parameters for role, part in model.status().roles.items()
        }
        assert (found["rank"], found["alpha"], found["inference_modules"]) == (4, 6, None)
    _, out, _ = taia("info", lora)
    assert out.startswith("adapter ")
    assert "rank pattern   q_proj 2" in out
    assert "alpha pattern  q_proj 3" in out
    assert "default" not in out


def test_generate_answers_in_every_mode(taia, online, pico):
    modes = ["none", "attention", "ffn", "all", '{"attention": 1, "ffn": 0.5}']
    words = [word for mode in modes for word in ("--mode", mode)]
    status, out, _ = taia("generate", online.taia, "--prompt", "the", "--max-new-tokens", 5, "--json", *words)
    assert status == 0
    found = json.loads(out)
    assert [one["mode"] for one in found] == [*modes[:4], "attention=1, ffn=0.5"]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(online.taia), AutoTokenizer.from_pretrained(online.taia)
    ids = tokenizer("the", return_tensors="pt")
    for one, mode in zip(found, modes[:4], strict=False):
        with model.using(mode):
            tokens = model.generate(**ids, max_new_tokens=5, do_sample=False)[0, ids["input_ids"].shape[1] :]
        assert one["text"] == tokenizer.decode(tokens, skip_special_tokens=True).strip()


def test_generate_without_a_mode_uses_the_published_one(taia, online):
    status, out, _ = taia("generate", online.taia, "--prompt", "the", "--max-new-tokens", 3, "--json")
    assert status == 0
    assert [one["mode"] for one in json.loads(out)] == ["attention"]


def test_generate_writes_one_answer_as_it_grows(taia, online, monkeypatch):
    sampled = ["--temperature", 0.9, "--top-k", 20, "--top-p", 0.9, "--seed", 3, "--max-new-tokens", 9]
    status, whole, err = taia("generate", online.taia, "the sea", "--mode", "TAIA", *sampled)
    assert status == 0, err
    assert "on cpu, float32\n" in err
    model, tokenizer = AutoModelForCausalLM.from_pretrained(online.taia), AutoTokenizer.from_pretrained(online.taia)
    how = {"do_sample": True, "temperature": 0.9, "top_k": 20, "top_p": 0.9, "seed": 3, "max_new_tokens": 9}
    states = list(stream_compare(model, tokenizer, "the sea", ["attention"], **how))
    assert whole == f"{states[-1].answers[0].text.strip()}\n"

    def interrupted(*positional, **keywords):
        yield from states[:4]
        raise KeyboardInterrupt

    monkeypatch.setattr("taia_hub.compare.stream_compare", interrupted)
    status, out, err = taia("generate", online.taia, "the sea", "--mode", "TAIA")
    assert (status, out) == (130, f"{states[3].answers[0].text.strip()}\n")
    assert "Stopped." in err
    status, out, _ = taia("generate", online.taia, "the sea", "--mode", "TAIA", "--json")
    assert (status, json.loads(out)) == (130, [{"mode": "attention", "text": states[3].answers[0].text.strip()}])


def test_generate_takes_an_adapter_and_names_the_modes_of_several_answers(taia, online):
    words = ["--max-new-tokens", 3, "--mode", "none", "--mode", "all"]
    status, out, err = taia("generate", online.adapter, "the", *words)
    assert status == 0, err
    assert out.startswith("[none (base)]\n")
    assert "\n\n[all (vanilla)]\n" in out


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (["--top-k", 4], "--top-k has no meaning without sampling", "--temperature"),
        (["again"], "The prompt came twice", "Leave one out"),
        (["--mode", "atention"], "Unknown inference modules 'atention'. Did you mean 'attention'?", "Choose one of"),
        (["--mode", "{ffn: 1}"], "is no JSON", "Quote it for the shell"),
        (["--mode", '{"ffn": 2}'], "The weight of 'ffn' is 2", None),
        (["--prompt", ""], "The prompt is empty", "--prompt"),
    ],
)
def test_generate_says_what_is_wrong(taia, online, words, message, hint):
    prompt = [] if "--prompt" in words else ["--prompt", "the"]
    status, out, err = taia("generate", online.taia, *prompt, *words)
    assert (status, out) == (1, "")
    assert message in err
    assert hint is None or hint in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("info", "x" * 300), "is neither a folder here nor a Hub id"),
        (("push", "x" * 300, "org/m"), "is longer than the name of a file may be"),
        (("train", "x" * 300), "is longer than the name of a file may be"),
    ],
)
def test_a_name_that_no_disk_takes_is_no_failure_of_ours(taia, words, said):
    status, _, err = taia(*words)
    assert (status, said in err, "OSError" in err) == (1, True, False)


def test_debug_shows_the_traceback(online):
    with pytest.raises(ConfigError):
        cli.main(["--debug", "generate", online.taia, "--prompt", ""])


def test_an_unknown_option_is_a_usage_error(taia):
    status, _, err = taia("info", "x/y", "--nope")
    assert status == 2
    assert "--nope" in err


@pytest.mark.parametrize("words", [("eval", "--retention"), ("tune", "--target", "items.jsonl", "--push")])
def test_an_argument_that_an_option_took_is_named(taia, words):
    status, _, err = taia(*words, "org/model")
    assert status == 2
    said = " ".join(err.split())
    assert f"'org/model' is taken for the value of {words[-1]}" in said
    assert f"`taia {words[0]} org/model {words[-1]}`" in said
    assert "is taken for" not in taia(*words)[2]


def test_an_option_that_may_stand_alone_is_not_given_twice(taia):
    status, _, err = taia("eval", "org/model", "--retention", "--retention=a.txt")
    assert status == 2
    assert "--retention is given more than once" in " ".join(err.split())


def test_hub_serve_runs_until_it_is_interrupted(tmp_path):
    words = [sys.executable, "-m", "taia_hub.cli", "hub", "serve", str(tmp_path / "hub"), "--port", "0"]

    def interruptible():  # a runner in the background may ignore SIGINT, and children inherit that
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, preexec_fn=interruptible) as process:
        try:
            lines = []
            until = time.monotonic() + 120
            while not any("HF_ENDPOINT" in line for line in lines) and time.monotonic() < until:
                lines.append(process.stdout.readline())
            endpoint = next(line for line in lines if "HF_ENDPOINT" in line).strip().partition("=")[2]
            with urllib.request.urlopen(f"{endpoint}/api/agent-harnesses") as reply:
                assert reply.status == 200
        finally:
            process.send_signal(2)
            try:
                status = process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        assert status in (0, 130)


def test_the_demo_needs_no_option(taia, monkeypatch, tmp_path):
    asked = []

    def run(folder, **keywords):
        asked.append((folder, keywords["steps"]))
        raise KeyboardInterrupt

    monkeypatch.setattr("taia_hub.demo.run_demo", run)
    status, _, _ = taia("demo")
    assert status == 130
    assert asked == [(Path("taia-demo"), DEFAULT_STEPS)]
    taia("demo", "--dir", tmp_path)
    assert asked[-1][0] == tmp_path


@pytest.mark.parametrize("words", [["create", "a", "b", "--out", ""], ["push", "", "org/x"], ["demo", "--dir", " "]])
def test_an_empty_folder_is_not_the_working_folder(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code
    assert "name is empty" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_unknown_dtype_is_named(online, capsys):
    with pytest.raises(SystemExit):
        main(["generate", online.taia, "--prompt", "the", "--dtype", "float99"])
    assert "--dtype 'float99' is not known" in capsys.readouterr().err
