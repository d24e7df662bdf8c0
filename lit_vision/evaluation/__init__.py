"""Pure functions on features, predictions and numbers: probes, k-NN, few-shot, metrics."""
