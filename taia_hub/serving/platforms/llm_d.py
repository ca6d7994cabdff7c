"""llm-d: vLLM with its filesystem resolver, and a weighted rewrite between the modes."""

from __future__ import annotations

from typing import Any

from taia_hub.serving.platforms.shared import (
    FILES,
    HandOver,
    Platform,
    claim,
    gpus,
    kubernetes_object,
    mounted,
    token,
    tokenizer_step,
    variables,
)

# llm-d/llm-d guides/rollouts/adapter-rollout.md (39e9702f): the variables of vLLM, the rewrite between adapters;
# guides/optimized-baseline/modelserver/gpu/vllm/base/patch-vllm.yaml (05b03f75): the container and the secret;
# guides/recipes/modelserver/components/images/gpu-vllm (64db62be): the image
# llm-d/llm-d-router config/crd/bases/llm-d.ai_inferencemodelrewrites.yaml (9fab645a)
# vllm 0.32.0 vllm/plugins/lora_resolvers/filesystem_resolver.py: the folder is named as the request's model


def _build(over: HandOver) -> list[dict[str, Any]]:
    order, labels = over.order, {"llm-d.ai/model": over.name}
    resolver = {
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
        "VLLM_PLUGINS": "lora_filesystem_resolver",
        "VLLM_LORA_RESOLVER_CACHE_DIR": FILES,
    }
    container = {
        "name": "modelserver",
        "image": "vllm/vllm-openai:v0.24.0",
        "command": ["vllm", "serve"],
        "args": [order.base, "--served-model-name", f"{order.name}:none", *over.words(), "--port", "8000"],
        "env": [*variables(resolver), token("llm-d-hf-token")],
        "ports": [{"containerPort": 8000}],
        "resources": gpus(over),
        "readinessProbe": {"httpGet": {"path": "/health", "port": 8000}},
    }
    pod = mounted(over, {"containers": [container]}, always=True)
    deployment = {
        "replicas": over.copies,
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": dict(labels)}, "spec": pod},
    }
    names = [f"{order.name}:{setting.slug}" for setting in over.settings]
    targets = [{"modelRewrite": name, **({"weight": 1} if len(names) > 1 else {})} for name in names]
    rewrite = {
        "poolRef": {"group": "inference.networking.k8s.io", "kind": "InferencePool", "name": over.name},
        "rules": [{"matches": [{"model": {"type": "Exact", "value": order.name}}], "targets": targets}],
    }
    return [
        kubernetes_object("apps/v1", "Deployment", over.name, deployment),
        kubernetes_object("llm-d.ai/v1alpha2", "InferenceModelRewrite", over.name, rewrite),
    ]


def _steps(over: HandOver) -> list[str]:
    places = [f"{mode.path} as {FILES}/{over.served(mode)}" for mode in over.order.updates]
    return [
        f"Before: copy into {claim(over)}, by a pod that has it at {FILES} (kubectl cp FOLDER POD:PLACE): "
        f"{', '.join(places)}",
        *tokenizer_step(over, claim(over)),
        f"Before: install llm-d's router for the InferencePool {over.name}, with router.modelServers.matchLabels "
        f"llm-d.ai/model: {over.name}",
        f"A request for {over.order.name} goes to one of the targets of the rewrite, as often as their weights say: "
        "change them for an A/B test of modes; the answer names the mode. A request for a mode gets that mode.",
        "Then: kubectl apply -f FILE",
    ]


PLATFORM = Platform(
    "llm-d",
    "llm-d, router of llm-d.ai/v1alpha2",
    "https://llm-d.ai/docs",
    "the container's command and variables were run with vLLM 0.32, fields checked against its resource definition; "
    "not run on a cluster.",
    from_hub=False,
    base="{name}:none",
    build=_build,
    steps=_steps,
)
