"""Updates of full fine-tuning: the difference of two checkpoints, its files and its layers."""
