"""Videos: frame folders, clips cut from them by key, their data module, and the extraction of frames."""
