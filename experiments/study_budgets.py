"""Run studies of the demo's photographs on a machine that becomes three times slower; compare with their budgets.

    lit-vision data patches --out data/patches
    python experiments/study_budgets.py --minutes 10 20 60

Each study runs under experiments/throttle.py with the timetable 0:1.0,HALF:0.33. A finished one in runs/study-budgets
is read again and not repeated. Writes experiments/results/study-budgets.json and .md.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from table_script import RESULTS, ROOT

from lit_vision.cli.parser import ScriptParser
from lit_vision.io.atomic import write_json
from lit_vision.results.environment import collect_environment
from lit_vision.results.tables import Table, to_markdown

MOST = 0.15  # of the budget, over it
SLOW = 0.33  # share of the speed in the second half
NOTE = (
    "A study of the demo's 2,520 photographs whose processes get the whole of the wall time in the first half of the "
    f"budget and {SLOW:.0%} in the second (`python experiments/study_budgets.py`). Aim: at most {MOST:.0%} over the "
    "budget, start-up apart. A study that has made all that it planned ends early. Fastest to slowest: images a second "
    "of one kind of training; where other programs ran beside it, they differ by more than three."
)

_STEP = r"^ *[\d:]+s?    (.+?)(?:, seed \d+)?: \d+%, loss .*?, ([\d.]+) images/s"  # a line of a training's progress


def run(folder: Path, minutes: float, out: Path) -> None:
    """Run a study of `folder` and write its log and wall time beside its results."""
    out.mkdir(parents=True, exist_ok=True)
    throttle = [sys.executable, "experiments/throttle.py", f"0:1.0,{30 * minutes:g}:{SLOW}", "--"]
    study = [sys.executable, "-m", "lit_vision", "study", str(folder), "--budget", f"{minutes:g}"]
    start = time.perf_counter()
    with (out / "output.log").open("w") as log:
        subprocess.run([*throttle, *study, "--run_dir", str(out / "run")], stdout=log, stderr=log, check=True)
    wall = time.perf_counter() - start
    write_json(out / "wall.json", {"minutes": minutes, "wall": round(wall, 1), **collect_environment()})


def summarize(out: Path) -> dict[str, Any]:
    """Return what a finished study took, what it tried, and how its speed changed."""
    wall, result = (json.loads((out / name).read_text()) for name in ("wall.json", "run/results.json"))
    log = (out / "output.log").read_text()
    last = re.findall(r"^ *([\d:]+)  With ", log, re.MULTILINE)[-1]
    speeds: dict[str, list[float]] = {}
    for title, speed in re.findall(_STEP, log, re.MULTILINE):
        speeds.setdefault(title, []).append(float(speed))
    ratio = max((max(values) / max(min(values), 0.1) for values in speeds.values()), default=1.0)
    trained = sorted({f"{cell['init']} {cell['protocol']}" for cell in result["cells"] if cell["steps"]})
    own = sum(int(part) * 60**place for place, part in enumerate(reversed(last.split(":"))))
    return {
        "minutes": wall["minutes"],
        "seconds": own,
        "wall": wall["wall"],
        "over": round(own / (60 * wall["minutes"]) - 1, 4),
        "speed_ratio": round(ratio, 2),
        "trained": trained,
        "not_tried": len(result["not_tried"]),
        **{key: wall[key] for key in ("commit", "dirty", "device", "cores")},
    }


def table(rows: list[dict[str, Any]]) -> Table:
    """Return a line for each budget."""
    body = [
        [
            f"{row['minutes']:g} min",
            _clock(row["seconds"]),
            _clock(row["wall"]),
            f"{100 * row['over']:+.1f} %",
            "yes" if row["over"] <= MOST else "NO",
            f"{row['speed_ratio']:.1f}x",
            "; ".join(row["trained"]) or "-",
        ]
        for row in rows
    ]
    columns = ["budget", "took", "with start-up", "over", "kept", "fastest to slowest", "trained"]
    return Table(columns, body, "Took: from the first line to the answer, minutes:seconds.")


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def main() -> int:
    """Run the script; return 1 if a budget was not kept."""
    os.chdir(ROOT)
    parser = ScriptParser(description=__doc__)
    parser.add_argument("--minutes", type=float, nargs="+", default=[10.0, 20.0, 60.0], help="budgets")
    parser.add_argument("--folder", type=Path, default=Path("data/patches"), help="images (default: %(default)s)")
    options = parser.parse_args()
    rows = []
    for minutes in options.minutes:
        out = Path(f"runs/study-budgets/{minutes:g}")
        if not (out / "wall.json").exists():
            run(options.folder, minutes, out)
        rows.append(summarize(out))
        print(f"{minutes:g} minutes: took {_clock(rows[-1]['seconds'])}", flush=True)
    write_json(RESULTS / "study-budgets.json", {"rows": rows})
    text = f"# Budgets of a study\n\n{NOTE}\n\n{to_markdown(table(rows))}"
    (RESULTS / "study-budgets.md").write_text(text, encoding="utf-8")
    print(text)
    return int(any(row["over"] > MOST for row in rows))


if __name__ == "__main__":
    sys.exit(main())
