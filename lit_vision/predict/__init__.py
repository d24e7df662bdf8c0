"""Using a model: which images (inputs), a model from any file (models, runtimes), what a task makes of its outputs (tasks), files that survive
a kill (journal), and the command itself (command). Imports nothing."""
