"""What fine-tuning changed: attached to a base model so that each module of it obeys the switch, fused, or merged.

Files of an update come in, an `Update` and its `Switch` go out; a folder for each kind has its layers and its files. It
may import `weights` and what lies below.
"""
