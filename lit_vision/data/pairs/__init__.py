"""Images with captions: the files that hold the captions, and the data module."""
