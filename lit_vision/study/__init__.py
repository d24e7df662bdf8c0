"""The study: what should I do with this folder? Baselines, pre-training, few labels, one report."""
