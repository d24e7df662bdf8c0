"""A run's folder: naming, checkpoints, resume, preemption, loggers, sharded training."""
