"""Load weights from files of any known layout into a module, with a report of what matched."""
