"""MoLoRA updates: routed LoRA experts, their files and their layers.

The files lie in `molora/`, where plain PEFT does not misread them; in mode `attention` one is an ordinary LoRA.
"""
