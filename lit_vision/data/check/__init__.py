"""Check a data set: broken files, duplicates, leaks between splits, loader speed."""
