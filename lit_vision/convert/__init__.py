"""Weights in and out: import, export, quantization, and the accuracy check of an export."""
