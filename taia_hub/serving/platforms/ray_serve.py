"""Ray Serve LLM: adapters are sub-folders of a bucket, loaded when they are first asked for."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from taia_hub.common.parsing import parse_json
from taia_hub.errors import ConfigError
from taia_hub.serving.platforms.shared import HandOver, Platform, tokenizer_step

# ray 2.60.0 (PyPI), ray/llm/_internal/serve/core/configs/llm_config.py: LLMConfig, LoraConfig (s3://, gs://, abfss://
# or azure://); common/utils/lora_utils.py: a request for MODEL:NAME loads the sub-folder NAME, and a name of a model
# ends at its first colon; serve/schema.py: ServeDeploySchema


def _build(over: HandOver) -> list[dict[str, Any]]:
    order = over.order
    config = {
        "model_loading_config": {"model_id": order.name, "model_source": order.base},
        "lora_config": {
            "dynamic_lora_loading_path": f"s3://BUCKET/{order.name}",
            "max_num_adapters_per_replica": len(order.updates),
        },
        "engine_kwargs": {_keyword(flag): _value(flag, values) for flag, values in over.flags.items()},
        "deployment_config": {"num_replicas": over.copies},
    }
    application = {
        "name": over.name,
        "route_prefix": "/",
        "import_path": "ray.serve.llm:build_openai_app",
        "args": {"llm_configs": [config]},
    }
    return [{"applications": [application]}]


def _keyword(flag: str) -> str:
    if not flag.startswith("--"):
        raise ConfigError(
            f"'{flag}' came among the flags for vLLM, and Ray Serve takes keywords.", "Write it out, as --long-name."
        )
    return flag.removeprefix("--").removeprefix("no-").replace("-", "_")


def _value(flag: str, values: Sequence[str]) -> Any:
    read = [_read(value) for value in values]
    return (read if len(read) > 1 else read[0]) if read else not flag.startswith("--no-")


def _read(value: str) -> Any:
    try:
        return parse_json(value)
    except ValueError:  # a plain word
        return value


def _steps(over: HandOver) -> list[str]:
    copies = [
        f"aws s3 sync {shlex.quote(str(mode.path))} s3://BUCKET/{over.order.name}/{mode.label}"
        for mode in over.order.updates
    ]
    return [
        "Put the name of your bucket in place of BUCKET; gs://, abfss:// and azure:// are taken too.",
        *(f"Before: {command}" for command in copies),
        *tokenizer_step(over, "every machine"),
        "Then, with pip install 'ray[serve,llm]' on every machine: serve deploy FILE",
    ]


PLATFORM = Platform(
    "ray-serve",
    "Ray Serve LLM 2.60",
    "https://docs.ray.io/en/latest/serve/llm/index.html",
    "checked by its own ServeDeploySchema and LLMConfig; not started.",
    from_hub=False,
    base="{name}",
    build=_build,
    steps=_steps,
)
