"""Resume the runs of tests/compatibility/files and write what each came to as JSON.

test_runs.py starts it as a process with the environment of run_summary.PORTABLE, which torch reads when it is imported.
Arguments: an empty folder to work in, the file for the summaries, names of runs.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import traceback
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
FILES = HERE / "files"
sys.path.insert(0, str(HERE))

from run_summary import summarize_run  # noqa: E402


def prepare(folder: Path) -> None:
    """The images, the pack and the recipes, as they lay when the runs began."""
    with zipfile.ZipFile(FILES / "images.zip") as archive:
        archive.extractall(folder)
    shutil.copytree(FILES / "recipes", folder / "recipes")
    for name in ("garments.pack", "half.txt", "captions.csv"):
        shutil.copy(FILES / name, folder)


def main(folder: Path, out: Path, names: list[str]) -> int:
    """Resumes one run after the other."""
    import torch

    from lit_vision.cli.main import main as lit_vision

    torch.set_num_threads(1)
    prepare(folder)
    os.chdir(folder)
    found = {}
    for name in names:
        expected = json.loads((FILES / "fits" / name / "expected.json").read_text())
        run = Path("runs", name, "stopped")
        shutil.copytree(FILES / "fits" / name, run)
        print(f"--- {name}", flush=True)
        arguments = [*expected["command"], "--run_dir", str(run), "--resume", "auto"]
        try:
            code = lit_vision(arguments)
            found[name] = {"code": code, "run": summarize_run(run) if code == 0 else {}}
        except BaseException as error:
            traceback.print_exc()
            found[name] = {"code": repr(error), "run": {}}
        with contextlib.suppress(ImportError):  # the next run is not of this process group
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()
    out.write_text(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]))
