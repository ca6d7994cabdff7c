"""KServe: `LLMInferenceService`, whose storage initializer fetches an export a repository."""

from __future__ import annotations

import shlex
from typing import Any

from taia_hub.serving.platforms.shared import (
    HandOver,
    Platform,
    claim,
    gpus,
    kubernetes_object,
    mounted,
    published,
    tokenizer_step,
    variables,
)

# kserve/kserve pkg/apis/serving/v1alpha1/llm_inference_service_types.go (01bfd238): LLMModelSpec, LoRASpec,
# WorkloadSpec; pkg/apis/serving/v1alpha2/llm_inference_service_validation.go (00bd5d06), ValidateLoRAAdapters: names
# are free and different; docs/samples/llmisvc/lora-adapters (047b343f): how they become flags of vLLM
# kserve-storage 0.21.0 (PyPI), Storage._download_hf: hf://owner/model[:revision], and nothing behind it


def _build(over: HandOver) -> list[dict[str, Any]]:
    order = over.order
    lora: dict[str, Any] = {
        "adapters": [{"name": over.served(mode), "uri": f"hf://{over.exported(mode)}"} for mode in order.updates],
        "maxRank": over.number("--max-lora-rank"),
        "maxAdapters": over.number("--max-loras"),
    }
    own = ("--revision", "--enable-lora", "--max-lora-rank", "--max-loras", "--tensor-parallel-size")
    container: dict[str, Any] = {"name": "main"}
    if words := over.words(*own):
        container["env"] = variables({"VLLM_ADDITIONAL_ARGS": shlex.join(words)})
    container["resources"] = gpus(over)
    spec: dict[str, Any] = {
        "model": {"uri": f"hf://{order.base}:{order.revision}", "name": f"{order.name}:none", "lora": lora},
        "replicas": over.copies,
    }
    if order.tensor_parallel > 1:
        spec["parallelism"] = {"tensor": order.tensor_parallel}
    spec["router"] = {"route": {}, "gateway": {}, "scheduler": {}}
    spec["template"] = mounted(over, {"containers": [container]})
    return [kubernetes_object("serving.kserve.io/v1alpha1", "LLMInferenceService", over.name, spec)]


def _steps(over: HandOver) -> list[str]:
    return [
        *published(over, ":"),
        *tokenizer_step(over, claim(over)),
        "A private repository needs HF_TOKEN in the container storage-initializer, from a secret, as the page says.",
        "Then: kubectl apply -f FILE",
    ]


PLATFORM = Platform(
    "kserve",
    "KServe 0.21, LLMInferenceService",
    "https://kserve.github.io/website/docs/model-serving/generative-inference/llmisvc/lora-adapters",
    "fields checked against its types, addresses by its storage initializer; not run on a cluster.",
    from_hub=True,
    base="{name}:none",
    build=_build,
    steps=_steps,
)
