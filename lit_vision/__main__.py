"""Run `lit-vision` as `python -m lit_vision`."""

import sys

from lit_vision.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
