"""Studies of real image sets that this repository does not hold: each script reads a downloaded archive."""
