"""Search of a recipe's settings: a journal that processes share, ordinary runs, paired seeds, one look at the test."""
