"""The golden cards' snippets: Python runs against the loopback Hub, shell commands are checked by their words."""

import dataclasses
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from taia_hub import cards
from tests.card_samples import BASE_SHA, EVERYTHING, FOLDER, GOLDEN


def blocks(name, language):
    return snippets(FOLDER / f"{name}.md", language)


def snippets(card, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", card.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture
def published(online):
    """The loopback Hub with everything that the golden cards load."""
    if not online.api.repo_exists("org/merged"):
        online.push_base("org/merged")
    return online


RUN = """
import contextlib, io, json
for name, blocks in json.loads(CARDS).items():
    names = {}
    for block in blocks:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(block, name, "exec"), names)
        if "pipeline" in block:
            assert names["generator"].model.inference_modules == "attention"
            assert out.getvalue().startswith("The capital of France is"), out.getvalue()
        if "inference_modules=modes" in block:
            assert [line.split()[0] for line in out.getvalue().splitlines()] == names["modes"]
            assert len({str(row) for row in names["answers"].tolist()}) > 1, "the modes say the same"
        if "PeftModel" in block:
            import torch
            ids = torch.arange(3, 10)[None]
            import taia_hub
            taia = taia_hub.TAIAForCausalLM.from_pretrained("org/model-taia")
            with torch.no_grad():
                assert torch.equal(names["model"](ids).logits, taia(ids, inference_modules="all").logits)
                assert not torch.equal(names["model"](ids).logits, taia(ids, inference_modules="none").logits)
    print("ran", name, len(blocks))
"""


@pytest.mark.slow
def test_every_python_snippet_runs(published, clean_process, repo_id):
    """Those of the golden cards, and word for word those of the cards that a push and a push of a pointer wrote."""
    from taia_hub.repository.creating import create_repository

    found = {name: blocks(name, "python") for name in GOLDEN}
    assert {name: len(code) for name, code in found.items()} == {
        "everything": 4,
        "nothing": 3,
        "short": 3,
        "trained": 3,
        "merged": 1,
        "space": 0,
    }
    # The commit of the base and the place of the repository are this Hub's.
    text = json.dumps(found).replace(BASE_SHA, published.base_sha).replace('\\"model-taia\\"', '\\"org/model-taia\\"')
    found = json.loads(text)

    create_repository(published.base, published.adapter, push=repo_id, link=True)
    for name, pushed in (("pushed", "org/model-taia"), ("pointer", repo_id)):
        found[name] = snippets(Path(published.api.hf_hub_download(pushed, "README.md")), "python")
        assert len(found[name]) == 4
    assert 'PeftModel.from_pretrained(base, "org/adapter", revision="' in found["pointer"][3]

    ran = clean_process(f"CARDS = {json.dumps(found)!r}\n{RUN}")
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert [line for line in ran.stdout.splitlines() if line.startswith("ran ")] == [
        f"ran {name} {len(code)}" for name, code in found.items()
    ]


@pytest.mark.parametrize("name", GOLDEN)
def test_shell_commands_are_well_formed(name):
    for code in blocks(name, "bash"):
        if shutil.which("bash"):
            assert subprocess.run(["bash", "-n"], input=code, text=True, capture_output=True, timeout=30).stderr == ""
        assert shlex.split(code)


def command(start):
    for code in blocks("everything", "bash"):
        for line in code.replace("\\\n", " ").splitlines():
            if line.startswith(start):
                return shlex.split(line)
    raise AssertionError(f"There is no command {start}.")


def options(words):
    return {word: words[index + 1] for index, word in enumerate(words[:-1]) if word.startswith("--")}


def test_the_download_brings_the_adapter_to_the_folder_that_the_engines_read(published, tmp_path):
    """`hf download` itself, then the folder that `--lora-modules` and the converter are given."""
    words = command("hf download")
    hf = shutil.which("hf") or pytest.skip("the command `hf` is not on the path")
    ran = subprocess.run([hf, *words[1:]], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    served = options(command("vllm serve"))["--lora-modules"]
    assert served.startswith("taia=")
    assert command("python convert_lora_to_gguf.py")[-1] == served.removeprefix("taia=")
    adapter = tmp_path / served.removeprefix("taia=")
    assert (adapter / "adapter_config.json").is_file()
    assert (adapter / "adapter_model.safetensors").is_file()


def test_vllm_serves_the_base_at_its_commit_with_the_whole_update():
    words = command("vllm serve")
    found = options(words)
    assert words[2] == "org/base"
    assert found["--revision"] == BASE_SHA
    assert "--enable-lora" in words
    assert int(found["--max-lora-rank"]) >= EVERYTHING.adapter_config["r"]
    assert "(mode `all`)" in (FOLDER / "everything.md").read_text(encoding="utf-8").split("vllm serve")[0]


def test_llama_cpp_converts_with_the_base_named():
    """Checked by its words alone: the converter ships with llama.cpp's sources, not with its Python package."""
    found = options(command("python convert_lora_to_gguf.py"))
    assert found == {"--base-model-id": "org/base", "--outfile": "taia-lora.gguf"}
    assert options(command("llama-cli"))["--lora"] == "taia-lora.gguf"


def test_shell_words_of_a_nasty_name_stay_one_word(tmp_path):
    if not shutil.which("bash"):
        pytest.skip("needs bash")
    for nasty in ("a b", "$(touch x)", "`touch x`", "x; touch x", "'", "two\n```\nlines", "<a>"):
        text = cards.render_card(dataclasses.replace(EVERYTHING, base_model=nasty))
        line = next(line for line in text.splitlines() if line.startswith("vllm serve"))
        word = line.removeprefix("vllm serve ").split(" --revision")[0]
        ran = subprocess.run(
            ["bash", "-c", f"printf %s {word}"], cwd=tmp_path, capture_output=True, text=True, timeout=30
        )
        assert ran.stdout == nasty
        assert not (tmp_path / "x").exists()
