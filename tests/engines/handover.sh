#!/usr/bin/env bash
# Gives what `taia serve --for` writes to the packages that the platforms publish: Ray's own schemas, and what reads
# hf:// addresses in KServe and in NVIDIA Dynamo. Asks a package index (300 MB) and reaches no Hub; not part of CI.
# Usage, in a clone: bash tests/engines/handover.sh [PYTHON of taia-hub's environment]
set -euo pipefail
python=${1:-python}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

PYTHONPATH=. "$python" - "$work" <<'END'
import sys
from pathlib import Path

from tests.serving.test_handover import HALF, written

for name in ("ray-serve", "kserve", "dynamo"):
    text, _ = written(name, "attention", HALF, copies=2, tensor_parallel=2, extra=("--max-model-len", "4096"))
    Path(sys.argv[1], f"{name}.yaml").write_text(text)
END

"$python" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "ray[serve]==2.60.0" pyarrow fsspec jsonref boto3 \
    kserve-storage==0.21.0 ai-dynamo-runtime==1.6.1
export HF_ENDPOINT=http://127.0.0.1:9 DYN_LOG=error # nothing listens there
"$work/venv/bin/python" - "$work" <<'END'
import asyncio
import os
import sys
from pathlib import Path

import yaml


def documents(name):
    return list(yaml.safe_load_all(Path(sys.argv[1], f"{name}.yaml").read_text()))


from ray.llm._internal.common.utils.lora_utils import get_base_model_id, get_lora_id
from ray.llm._internal.serve.core.configs.llm_config import LLMConfig
from ray.serve.schema import ServeDeploySchema

(application,) = ServeDeploySchema.model_validate(documents("ray-serve")[0]).applications
config = LLMConfig.model_validate(application.args["llm_configs"][0])
for label in ("attention", "attention-1-ffn-0.5"):
    assert get_base_model_id(f"model-taia:{label}") == config.model_id == "model-taia"
    assert get_lora_id(f"model-taia:{label}") == label
print("Ray Serve LLM: the schemas take it")

os.environ["HF_HUB_OFFLINE"] = "1"  # no tries: what is read of an address is all that counts
from kserve_storage import Storage

model = documents("kserve")[0]["spec"]["model"]
for uri in [model["uri"], *(one["uri"] + ":main" for one in model["lora"]["adapters"])]:
    try:
        Storage._download_hf(uri, sys.argv[1] + "/kserve")
    except Exception as error:
        assert "Invalid Hugging Face URI" not in str(error), error
try:
    Storage._download_hf("hf://org/model-taia/adapter", sys.argv[1] + "/kserve")
except RuntimeError as error:
    assert "Invalid Hugging Face URI" in str(error), error
    print("KServe: the storage initializer reads the addresses, and still refuses a folder of a repository")

del os.environ["HF_HUB_OFFLINE"]
from dynamo.llm import LoRADownloader


async def asked(uri):
    try:
        await LoRADownloader(sys.argv[1] + "/dynamo").download_if_needed(uri)
    except Exception as error:
        return str(error)


for one in documents("dynamo")[1:]:
    name = one["spec"]["source"]["uri"].removeprefix("hf://")
    said = asyncio.run(asked(f"hf://{name}@main"))
    assert f"resolving Hugging Face repository {name} at revision main" in said, said
said = asyncio.run(asked("hf://org/model-taia/adapter"))
assert "repository org/model-taia/adapter at" in said, said
print("Dynamo: the downloader reads the addresses, and still takes a folder for a part of the name")
END
