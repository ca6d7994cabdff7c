"""A case for vLLM alone: a request for the base beside one with a LoRA, with as many slots as LoRAs.

`python vllm_none_slot.py FOLDER` in an environment with vLLM and PEFT ends with 0 where the base's log-probabilities
are the same alone and beside the LoRA, and with 3 where they are not. On CPUs vLLM 0.32.0 ends with 3: a row without a
LoRA has the index -1, which picks the last slot (vllm/lora/ops/torch_ops/lora_ops.py).
"""

import sys
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig

PROMPT = {"prompt_token_ids": [1, 5, 9, 13]}


def make(folder: Path) -> None:
    """Writes a random Llama and a LoRA on it."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 256, "vocab_size": 128, "max_position_embeddings": 128}
    config = LlamaConfig(num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, **sizes)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder / "base")
    lora = get_peft_model(model, LoraConfig(r=8, target_modules=["q_proj", "v_proj", "down_proj"]))
    with torch.no_grad():
        for name, parameter in lora.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.5)
    lora.save_pretrained(folder / "lora")


def main(folder: Path) -> int:
    """Compares the first log-probabilities of the base alone with those beside a LoRA."""
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    make(folder)
    model = LLM(
        str(folder / "base"),
        skip_tokenizer_init=True,
        dtype="float32",
        max_model_len=64,
        enable_lora=True,
        max_loras=1,
        enforce_eager=True,
        enable_prefix_caching=False,
    )
    lora = LoRARequest("lora", 1, str(folder / "lora"))
    params = SamplingParams(max_tokens=2, temperature=0, logprobs=1, detokenize=False, ignore_eos=True)

    def first(loras: list) -> list[float]:
        answers = model.generate([PROMPT] * len(loras), params, lora_request=loras)
        return [answer.outputs[0].cumulative_logprob for answer in answers]

    (alone,) = first([None])
    beside, other = first([None, lora])
    sys.stderr.write(f"base alone {alone:.4f}, beside the LoRA {beside:.4f}, the LoRA {other:.4f}\n")
    return 3 if abs(alone - beside) > 1e-3 else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
