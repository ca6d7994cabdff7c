"""`taia serve --for`: what each platform takes, and what is refused. `tests/engines/handover.sh` asks the platforms."""

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from taia_hub.engines import ENGINES, Order, ServedMode
from taia_hub.errors import ConfigError, RepositoryError
from taia_hub.exporting.options import by_folder
from taia_hub.exporting.publishing import export_id
from taia_hub.serving.handover import hand_over, manifest
from taia_hub.serving.planning import ServingPlan
from taia_hub.serving.platforms import PLATFORMS, HandOver, find_platform, kubernetes_name
from taia_hub.switch.settings import parse_setting

FIELDS = yaml.safe_load((Path(__file__).parents[1] / "data" / "platform_fields.yaml").read_text())
SHA = "0123456789abcdef0123456789abcdef01234567"
HALF = {"attention": 1, "ffn": 0.5}


def over(*modes, copies=1, **values):
    """What is handed over of `org/model-taia`, without a Hub: plans are made of an order alone."""
    settings = tuple(map(parse_setting, modes or ("attention", HALF)))
    served = (ServedMode(one.slug, Path("/m", one.slug), 24) for one in settings if one.name != "none")
    order = Order(**{"name": "model-taia", "base": "org/base", "revision": SHA} | values, modes=(*served, none()))
    plan = ServingPlan(ENGINES["vllm"], order, ENGINES["vllm"].commands(order), (), Path())
    return HandOver(plan, "org/model-taia", SHA, settings, copies)


def none():
    return ServedMode("none")


def written(name, *modes, **values):
    text = manifest(PLATFORMS[name], over(*modes, **values))
    return text, list(yaml.safe_load_all(text))


def differences(value, kind, place):
    """Says where a value is not what `platform_fields.yaml` allows."""
    if kind == "pod":
        return differences(value, FIELDS["pod"], place)
    if isinstance(kind, str):
        return [] if type(value) is {"str": str, "int": int, "bool": bool}[kind] else [f"{place} is no {kind}"]
    if isinstance(kind, list):
        return [found for one in value for found in differences(one, kind[0], f"{place}[]")]
    known = {key.rstrip("!"): inner for key, inner in kind.items()}
    found = [f"{place}.{key} is missing" for key in kind if key.endswith("!") and key.rstrip("!") not in value]
    for key, inner in value.items():
        if key not in known:
            found.append(f"{place}.{key} is unknown")
        else:
            found += differences(inner, known[key], f"{place}.{key}")
    return found


@pytest.mark.parametrize("name", ["kserve", "llm-d", "dynamo"])
@pytest.mark.parametrize("values", [{}, {"copies": 3, "tensor_parallel": 2, "tokenizer": Path("/m/tokenizer-1")}])
def test_the_fields_are_those_of_the_resource_definitions(name, values):
    _, documents = written(name, **values)
    for one in documents:
        assert set(one) == {"apiVersion", "kind", "metadata", "spec"}
        assert re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", one["metadata"]["name"])
        kind = f"{one['apiVersion']} {one['kind']}"
        assert differences(one["spec"], FIELDS[kind], kind) == []
    assert len({(one["kind"], one["metadata"]["name"]) for one in documents}) == len(documents)


def test_kserve_fetches_an_export_a_repository():
    text, (one,) = written("kserve", copies=3, tensor_parallel=2, extra=("--max-model-len", "4096"))
    spec = one["spec"]
    assert spec["model"] == {
        "uri": f"hf://org/base:{SHA}",
        "name": "model-taia:none",
        "lora": {
            "adapters": [
                {"name": "model-taia:attention", "uri": "hf://org/model-taia-attention"},
                {"name": "model-taia:attention-1-ffn-0.5", "uri": "hf://org/model-taia-attention-1-ffn-0.5"},
            ],
            "maxRank": 32,
            "maxAdapters": spec["model"]["lora"]["maxAdapters"],
        },
    }
    assert (spec["replicas"], spec["parallelism"]) == (3, {"tensor": 2})
    (main,) = spec["template"]["containers"]
    assert main["resources"]["limits"] == {"nvidia.com/gpu": "2"}
    assert main["env"] == [{"name": "VLLM_ADDITIONAL_ARGS", "value": "--max-model-len 4096"}]
    assert "# Models: model-taia:attention, model-taia:attention-1-ffn-0.5, and the base as model-taia:none" in text


def test_the_printed_export_publishes_what_the_manifest_names():
    for modes in (("attention",), ("attention+other", HALF), ("none", "all")):
        text, (one,) = written("kserve", *modes)
        (line,) = (line for line in text.splitlines() if "taia export" in line)
        words = shlex.split(line.partition(": ")[2])
        given = [words[index + 1] for index, word in enumerate(words) if word == "--mode"]
        read = [json.loads(mode) if mode.startswith("{") else mode for mode in given]
        pushed = [export_id(words[words.index("--push") + 1], name) for name in by_folder(read)]
        assert [f"hf://{name}" for name in pushed] == [each["uri"] for each in one["spec"]["model"]["lora"]["adapters"]]
        assert words[-2:] == ["--revision", SHA]


@pytest.mark.parametrize("name", list(PLATFORMS))
def test_ranks_and_slots_are_those_of_vllm(name):
    text, _ = written(name)
    words = ENGINES["vllm"].commands(over().order)[-1].words
    slots = words[words.index("--max-loras") + 1]
    numbers = re.findall(r"max-loras\s+- '(\d+)'|maxAdapters: (\d+)|max_loras: (\d+)", text)
    assert [one for found in numbers for one in found if one] == [slots]
    assert re.findall(r"max-lora-rank\s+- '32'|maxRank: 32|max_lora_rank: 32", text)
    assert not re.search(r"[&*]id00", text)  # an anchor of YAML, which some clients do not read


def test_ray_names_a_mode_by_its_sub_folder():
    extra = ("--max-model-len", "4096", "--no-enable-prefix-caching", "--dtype=bfloat16", "--enforce-eager")
    text, (one,) = written("ray-serve", copies=2, tensor_parallel=2, extra=extra)
    (application,) = one["applications"]
    (config,) = application["args"]["llm_configs"]
    assert config["model_loading_config"] == {"model_id": "model-taia", "model_source": "org/base"}
    assert config["lora_config"]["dynamic_lora_loading_path"] == "s3://BUCKET/model-taia"
    assert config["deployment_config"] == {"num_replicas": 2}
    asked = config["engine_kwargs"]
    assert (asked["revision"], asked["enable_lora"], asked["tensor_parallel_size"]) == (SHA, True, 2)
    assert (asked["max_model_len"], asked["enable_prefix_caching"], asked["dtype"]) == (4096, False, "bfloat16")
    assert asked["enforce_eager"] is True
    assert "aws s3 sync /m/attention s3://BUCKET/model-taia/attention\n" in text
    assert "and the base as model-taia\n" in text
    with pytest.raises(ConfigError, match="'-O3' came among") as caught:
        written("ray-serve", extra=("-O3",))
    assert "--long-name" in caught.value.hint


def test_a_negative_number_is_a_value():
    _, (one,) = written("ray-serve", extra=("--seed", "-1", "--enforce-eager"))
    (config,) = one["applications"][0]["args"]["llm_configs"]
    assert (config["engine_kwargs"]["seed"], config["engine_kwargs"]["enforce_eager"]) == (-1, True)


def test_llm_d_splits_requests_between_the_modes():
    text, (deployment, rewrite) = written("llm-d", "attention", "all")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    variables = {one["name"]: one.get("value") for one in container["env"]}
    assert variables["VLLM_LORA_RESOLVER_CACHE_DIR"] == container["volumeMounts"][0]["mountPath"] == "/taia"
    assert container["args"][:5] == ["org/base", "--served-model-name", "model-taia:none", "--revision", SHA]
    assert "/m/attention as /taia/model-taia:attention" in text
    (rule,) = rewrite["spec"]["rules"]
    assert rule["matches"] == [{"model": {"type": "Exact", "value": "model-taia"}}]
    assert rule["targets"] == [
        {"modelRewrite": "model-taia:attention", "weight": 1},
        {"modelRewrite": "model-taia:all", "weight": 1},
    ]
    alone, against_base = (written("llm-d", *modes)[1][1] for modes in (["attention"], ["attention", "none"]))
    assert alone["spec"]["rules"][0]["targets"] == [{"modelRewrite": "model-taia:attention"}]
    assert against_base["spec"]["rules"][0]["targets"][1] == {"modelRewrite": "model-taia:none", "weight": 1}


def test_dynamo_has_a_model_a_mode_on_the_graphs_base():
    _, (graph, *models) = written("dynamo", copies=2)
    worker = graph["spec"]["components"][1]
    assert (worker["modelRef"]["name"], worker["replicas"]) == ("org/base", 2)
    assert {one["spec"]["baseModelName"] for one in models} == {"org/base"}
    assert [one["spec"]["modelName"] for one in models] == ["model-taia:attention", "model-taia:attention-1-ffn-0.5"]
    assert models[0]["spec"]["source"] == {"uri": "hf://org/model-taia-attention"}


@pytest.mark.parametrize("name", list(PLATFORMS))
def test_a_tokenizer_of_its_own_is_mounted_or_asked_for(name):
    text, _ = written(name, tokenizer=Path("/here/tokenizer-1"))
    assert "/taia/tokenizer, the files of /here/tokenizer-1\n" in text
    assert text.count("/here/tokenizer-1") == 1  # no server is told of a folder of this machine
    assert "/taia/tokenizer" in text.replace("# ", "").partition("\n")[2]


def test_names_for_kubernetes_stay_apart():
    names = ("model:all", "Model:all", "model.all", "model_all", "7b:all", "m" * 70, "m" * 71, "ü:all")
    made = [kubernetes_name(name) for name in names]
    assert made[0] == "model-all"
    assert len(set(made)) == len(made)
    assert all(re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", name) for name in made)


# --- Bad input -----------------------------------------------------------------------------------------------------
def test_a_platform_that_is_not_known():
    with pytest.raises(ConfigError, match=r"'kserv' is not known. Did you mean 'kserve'\?") as caught:
        find_platform("kserv")
    assert "kserve, ray-serve, llm-d, dynamo" in caught.value.hint


@pytest.mark.parametrize(
    ("words", "said", "hint"),
    [
        ((), "nothing is started on a cluster", "Add --print"),
        (("--print", "--engine", "sglang"), "--engine sglang does not apply", "Leave it out"),
        (("--print", "--gguf", "base.gguf"), "--gguf does not apply", "Leave it out"),
        (("--print", "--nodes", "2"), "--nodes has no meaning", "--data-parallel is the number of servers"),
        (("--print", "--host", "0.0.0.0"), "--host has no meaning", "--tensor-parallel the GPUs"),
        (("--print", "--", "--api-key", "sk-1"), "The secret of --api-key would stand", "KServe 0.21 as a secret"),
        (("--print", "--", "--api_key=sk-1"), "The secret of --api_key would stand", "Leave it out"),
        (("--print", "--", "--chat-template", __file__), "is a file of this machine", "give that path"),
        (("--print", "--", "stray"), "'stray' came first among vllm's own flags", "begin with dashes"),
        (("--print", "--mode", "none"), "Only the base model is left", "--mode attention"),
    ],
)
def test_what_does_not_go_with_a_platform(taia, online, words, said, hint):
    status, _, err = taia("serve", online.taia, "--for", "kserve", *words)
    assert status == 1
    assert said in err
    assert hint in err


def test_an_export_whose_name_the_hub_refuses_is_refused_before_the_work(online, tmp_path, monkeypatch):
    monkeypatch.setattr("taia_hub.serving.handover.export_id", lambda repo, name: f"org/{'x' * 90}-{name}")
    with pytest.raises(RepositoryError, match="x-attention' is neither a folder here nor a Hub id"):
        hand_over(online.taia, "dynamo", ["attention"], out=tmp_path)
    assert hand_over(online.taia, "llm-d", ["attention"], out=tmp_path)  # which asks the Hub for no export


def test_a_folder_is_refused_where_exports_come_from_the_hub(taia, online, saved_taia, tmp_path):
    status, _, err = taia("serve", saved_taia, "--for", "dynamo", "--print")
    assert status == 1
    assert "which no server of a cluster sees" in err  # its base is a folder too
    online.api.snapshot_download(online.taia, local_dir=tmp_path / "taia")
    with pytest.raises(ConfigError, match=r"fetches exports from the Hub, and .* is a folder") as caught:
        hand_over(tmp_path / "taia", "kserve")
    assert "taia push" in caught.value.hint


def test_a_manifest_from_the_command_line(taia, online, tmp_path):
    words = ("--mode", "attention", "--mode", "all", "--print", "--out", tmp_path / "served", "--data-parallel", 2)
    status, out, _ = taia("serve", online.taia, *words, "--for", "ray-serve", "--", "--max-model-len", "4096")
    (application,) = yaml.safe_load(out)["applications"]
    assert status == 0
    assert application["args"]["llm_configs"][0]["engine_kwargs"]["max_model_len"] == 4096
    assert application["args"]["llm_configs"][0]["deployment_config"] == {"num_replicas": 2}
    assert (tmp_path / "served" / "adapters" / "attention" / "adapter_config.json").is_file()
