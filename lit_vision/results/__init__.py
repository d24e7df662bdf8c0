"""Result files, the environment that they record, tables, overlays and plots."""
