"""`python -m lit_vision` is the same as `lit-vision`."""

import sys

from lit_vision.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
