"""Runs: folders, checkpoint files, resume, preemption, loggers, sharded training."""
