"""Watch a run without touching its loss."""
