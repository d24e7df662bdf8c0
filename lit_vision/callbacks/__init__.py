"""Callbacks: checkpoints, weight averages, checks of the loss and the features, metrics, pictures and progress."""
