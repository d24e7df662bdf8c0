"""Weights: from files of any known layout to the state dict of a model, with a report of what matched."""
