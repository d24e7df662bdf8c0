"""The soak as a script: python -m soak, in experiments/."""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from soak import Soak
from soak import __doc__ as soak_about
from soak.toys import VIEWS

RESULT = Path(__file__).parents[1] / "results" / "soak.json"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="soak", description=soak_about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=200, help="random kills, and as many during saving")
    parser.add_argument("--gloo-kills", type=int, default=20, help="of two processes, and as many during saving")
    parser.add_argument(
        "--beside", type=int, default=len(os.sched_getaffinity(0)), help="runs at a time (default: cores)"
    )
    parser.add_argument("--only", default="", help="every, random, saving or gloo; the others' counts stay")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args(argv)
    import lit_vision.cli.lightning_cli  # noqa: F401  the forks have it then
    from lit_vision.results import schema

    torch.set_num_threads(1)
    start, environment = time.perf_counter(), schema.collect_environment(args.seed)
    shares = [args.kills // args.beside + (i < args.kills % args.beside) for i in range(args.beside)]
    parts = {
        "every": [
            lambda s, m=m, w=w: s.every_step([m], [w], [1, 2]) for m in VIEWS | {"Classifier": ""} for w in (0, 2)
        ],
        "random": [lambda s, n=n: s.random_steps(n) for n in shares],
        "saving": [lambda s, n=n: s.during_saving(n) for n in shares],
        "gloo": [
            lambda s: s.random_steps(args.gloo_kills, 2, "two processes, random steps"),
            lambda s: s.during_saving(args.gloo_kills, 2, "two processes, during saving"),
            lambda s: s.elastic(3),
        ],
    }
    jobs = [job for name, part in parts.items() if args.only in ("", name) for job in part]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    if not args.only or not args.out.is_file():
        args.out.write_text(
            json.dumps({"made_by": "make soak", "failures": 0, "parts": {}, "environment": environment})
        )
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None, prefix="soak-") as folder:
        soak = Soak(Path(folder), warm=("SimCLR", "MAE", "Classifier", "Plain"), out=args.out)
        running, lost = 0, 0
        for number, job in enumerate(jobs):
            if running == args.beside:
                running, lost = running - 1, lost + (os.wait()[1] != 0)
            _fork(soak, job, number, args.seed)
            running += 1
        for _ in range(running):
            lost += os.wait()[1] != 0
    done = json.loads(args.out.read_text())
    if lost:  # a part that ended in an error of its own has not shown anything
        done["failures"] += lost
        args.out.write_text(json.dumps(done, indent=2) + "\n")
    print(f"{args.out}: {done['failures']} failures, {time.perf_counter() - start:.0f} s: {json.dumps(done['parts'])}")
    return int(done["failures"] > 0)


def _fork(soak: Soak, job: Any, number: int, seed: int) -> None:
    """Do one job in a process of its own, which ends with 1 when the job could not be done."""
    sys.stdout.flush()
    if os.fork() == 0:
        try:
            soak.folder = soak.folder / str(number)
            soak.folder.mkdir()
            soak.random = random.Random(f"{seed}-{number}")
            job(soak)
        except BaseException as error:
            print("FAILED", number, repr(error), flush=True)
            os._exit(1)
        os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
