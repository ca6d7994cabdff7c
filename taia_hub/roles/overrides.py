"""Sublayers whose role structure leaves in doubt: one line an entry, with the reason."""

from __future__ import annotations

from typing import NamedTuple


class Override(NamedTuple):
    """One decision that structure cannot take.

    Attributes:
        owner: Class name of the module that holds the doubtful child; a name among its base classes also counts.
        child: Glob on the child's attribute name; the role holds for everything inside the child but for
            norms, which are `"other"`.
    """

    owner: str
    child: str
    role: str
    reason: str


# fmt: off
OVERRIDES: tuple[Override, ...] = (
    Override("Gemma3nTextDecoderLayer", "altup", "other", "mixes the residual streams; its router is no MoE router"),
    Override("Gemma3nTextDecoderLayer", "laurel", "other", "low-rank linear branch of the residual stream"),
    Override("Gemma3nTextDecoderLayer", "per_layer_*", "other", "feeds the per-layer input embedding into the stream"),
    Override("Gemma4TextDecoderLayer", "per_layer_*", "other", "feeds the per-layer input embedding into the stream"),
    Override("InklingDecoderLayer", "*_sconv", "attention", "causal convolution over tokens, after the MLP as well"),
    Override("Inkling2SlidingDecoderLayer", "post_*_convolution", "attention", "causal convolution over tokens"),
    Override("Inkling2FullDecoderLayer", "post_*_convolution", "attention", "causal convolution over tokens"),
    Override("DeepseekV4DecoderLayer", "*_hc", "other", "hyper-connection: mixes the residual streams of one token"),
    Override("HYV4DecoderLayer", "*_hc", "other", "hyper-connection: mixes the residual streams of one token"),
    Override("DebertaV2Encoder", "conv", "attention", "convolution over tokens beside the first layer"),
    Override("MobileBertLayer", "bottleneck", "other", "narrows the residual stream for both sublayers"),
    Override("MobileBertOutput", "bottleneck", "other", "widens the residual stream again after both sublayers"),
    Override("Qwen4ExpTextDecoderLayer", "ple", "other", "per-layer n-gram embedding of the input, with its own gate"),
    Override("SqueezeBertModule", "post_attention", "attention", "output projection, a convolution of width 1"),
    Override("SqueezeBertModule", "intermediate", "ffn", "projection of the MLP, a convolution of width 1"),
    Override("SqueezeBertModule", "output", "ffn", "projection of the MLP, a convolution of width 1"),
    Override("ZambaHybridLayer", "linear", "other", "leads a whole shared block (attention and FFN) into the stream"),
    Override("Zamba2HybridLayer", "linear", "other", "leads a whole shared block (attention and FFN) into the stream"),
)
# fmt: on
