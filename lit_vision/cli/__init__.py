"""The `lit-vision` command: one file per command, and the only place for argparse, jsonargparse and LightningCLI."""

from lit_vision.cli import main

__all__ = ["main"]
