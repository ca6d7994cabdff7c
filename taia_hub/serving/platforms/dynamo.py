"""NVIDIA Dynamo: a graph that serves the base, and a `DynamoModel` a mode."""

from __future__ import annotations

from typing import Any

from taia_hub.engines import ServedMode
from taia_hub.serving.platforms.shared import (
    HandOver,
    Platform,
    claim,
    gpus,
    kubernetes_name,
    kubernetes_object,
    mounted,
    published,
    token,
    tokenizer_step,
    variables,
)

# ai-dynamo/dynamo deploy/operator/config/crd/bases/nvidia.com_dynamomodels.yaml (50820f5b): DynamoModel
# examples/backends/vllm/deploy/lora/agg_lora_hf.yaml (04521f47): the graph, its variables and its image
# ai-dynamo-runtime 1.6.1 (PyPI), LoRADownloader: hf://owner/name[@revision]; more of a path is read as the name


def _build(over: HandOver) -> list[dict[str, Any]]:
    image, base = "nvcr.io/nvidia/ai-dynamo/vllm-runtime:1.3.1", over.order.base
    worker = {
        "name": "main",
        "image": image,
        "env": [*variables({"DYN_LORA_ENABLED": "true", "DYN_SYSTEM_PORT": "9090"}), token("hf-token-secret")],
        "command": ["python3", "-m", "dynamo.vllm"],
        "args": ["--model", base, *over.words()],
        "resources": gpus(over),
    }
    frontend = {"containers": [{"name": "main", "image": image}]}
    components = [
        {"name": "Frontend", "type": "frontend", "replicas": 1, "podTemplate": {"spec": frontend}},
        {
            "name": "VllmDecodeWorker",
            "type": "decode",
            "replicas": over.copies,
            "modelRef": {"name": base},
            "podTemplate": {"spec": mounted(over, {"containers": [worker]})},
        },
    ]
    graph = kubernetes_object("nvidia.com/v1beta1", "DynamoGraphDeployment", over.name, {"components": components})
    return [graph, *(_dynamo_model(over, mode) for mode in over.order.updates)]


def _dynamo_model(over: HandOver, mode: ServedMode) -> dict[str, Any]:
    served = over.served(mode)
    spec = {
        "modelName": served,
        "baseModelName": over.order.base,
        "modelType": "lora",
        "source": {"uri": f"hf://{over.exported(mode)}"},
    }
    return kubernetes_object("nvidia.com/v1alpha1", "DynamoModel", kubernetes_name(served), spec)


def _steps(over: HandOver) -> list[str]:
    return [
        *published(over, "@"),
        *tokenizer_step(over, claim(over)),
        "A graph that serves the base already stays: give it the flags of the worker's `args`, and apply the "
        "DynamoModels alone.",
        "Then: kubectl apply -f FILE",
    ]


PLATFORM = Platform(
    "dynamo",
    "NVIDIA Dynamo 1.6, DynamoModel",
    "https://docs.nvidia.com/dynamo",
    "fields checked against its resource definition, addresses by its downloader; not run on a cluster.",
    from_hub=True,
    base="{base}",
    build=_build,
    steps=_steps,
)
