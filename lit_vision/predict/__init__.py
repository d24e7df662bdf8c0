"""Run a model on images: inputs, models and runtimes, results, resumable output, explanations, search."""
