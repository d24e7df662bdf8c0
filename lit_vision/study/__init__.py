"""Study of a folder: baselines, pre-training and few labels, summarized in one report."""
