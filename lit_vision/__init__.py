"""lit_vision: pre-train on unlabeled images, fine-tune with few labels, reproduce the tables, deploy."""

__version__ = "0.1.0"
