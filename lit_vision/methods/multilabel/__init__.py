"""Classification with several labels an image."""
