"""Weights in and out: import, export, quantization, and the accuracy check of what was exported."""
