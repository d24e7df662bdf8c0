"""Run one part of the GPU check in this process; experiments/gpu_check.py starts it."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from lit_vision.cli.parser import ScriptParser


def main() -> int:
    """Run the function; return 1 if something in it failed."""
    parser = ScriptParser(prog="gpu_checks", description=__doc__)
    parser.add_argument("function", help="FILE.FUNCTION of this folder")
    parser.add_argument("--part", required=True)
    parser.add_argument("--out", type=Path, required=True, help="its JSON file")
    parser.add_argument("--work", type=Path, required=True, help="folder for data and runs")
    parser.add_argument("--seconds", type=float, required=True, help="time limit")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), required=True)
    args = parser.parse_args()

    from lit_vision.io.processes import die_with_parent

    die_with_parent()  # a check that is killed leaves nothing behind

    import torch
    from gpu_checks.report import Report

    from lit_vision.results.environment import collect_environment

    device = args.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        print("--device cuda: torch sees no CUDA device here; use cpu", file=sys.stderr)
        return 1
    environment = collect_environment()
    seen = {"device": environment["device"], "kind": device, "cores": environment["cores"]}
    if device == "cuda":
        seen |= {"cuda": torch.version.cuda, "memory_mb": torch.cuda.get_device_properties(0).total_memory / 1e6}
    report = Report(args.part, args.out, args.work, device, args.seconds, seen)
    file, function = args.function.split(".")
    getattr(importlib.import_module(f"gpu_checks.{file}"), function)(report)
    report.write()
    return int(bool(report.failures))


if __name__ == "__main__":
    sys.exit(main())
