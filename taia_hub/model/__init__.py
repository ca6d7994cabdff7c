"""What a loaded model can do beside its switch: where it comes from, and what it turns into.

The methods import what they call when they are called, so that a model is loaded without training, exports or cards.
"""
