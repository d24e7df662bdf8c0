"""lit_vision: pre-train on unlabelled images, adapt with few labels, reproduce the table, deploy."""

__version__ = "0.1.0"
