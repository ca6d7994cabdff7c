"""Which updates act now: the grammar of a setting, the switch of a loaded model, and the keyword of its calls.

A setting comes in, a weight for each adapted module goes out. It may import `roles` and what lies below.
"""
