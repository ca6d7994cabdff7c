"""MoLoRA updates: routed LoRA experts, their files and their layers."""
