"""Screenshots of a report for the README: the page in a headless Chromium, at desktop and phone width.

Run: python experiments/screenshot.py runs/demo/report.html experiments/results/demo
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from lit_vision.cli.parser import ScriptParser

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
WIDTHS = {"desktop": (900, 1500), "phone": (390, 1500)}


def main() -> int:
    """Write report-desktop.png and report-phone.png; return 1 if there is no Chromium."""
    parser = ScriptParser(description=__doc__)
    parser.add_argument("page", type=Path, help="the report, an HTML file")
    parser.add_argument("out", type=Path, help="folder of the pictures")
    parser.add_argument("--height", type=int, help="pixels of the page to show (default: its first screen)")
    options = parser.parse_args()
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        print(f"no Chromium here ({', '.join(BROWSERS)}); install one", file=sys.stderr)
        return 1
    options.out.mkdir(parents=True, exist_ok=True)
    for name, (width, height) in WIDTHS.items():
        picture = options.out / f"report-{name}.png"
        with tempfile.TemporaryDirectory() as page:
            # a window is never narrower than about 500 pixels: the page is put into a frame of the wanted width
            frame = Path(page) / "frame.html"
            shown = options.height or height
            frame.write_text(
                f'<body style="margin:0"><iframe src="{options.page.resolve().as_uri()}" '
                f'style="border:0;width:{width}px;height:{shown}px"></iframe></body>'
            )
            flags = [
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--hide-scrollbars",
                f"--window-size={width},{shown}",
            ]
            subprocess.run(
                [browser, *flags, f"--user-data-dir={page}", f"--screenshot={picture.resolve()}", frame.as_uri()],
                check=True,
                capture_output=True,
            )
        print(picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
