"""Pure functions on features and numbers."""
