"""Command line of the soak test: `python -m soak` in experiments/."""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from lit_vision.cli.parser import ScriptParser
from soak import Soak, labeling, shards, studies, sweeps
from soak import __doc__ as description
from soak.cases import VIEWS

RESULT = Path(__file__).parents[1] / "results" / "soak.json"
SCENARIOS = ("every", "random", "saving", "gloo", "study", "labeling", "sweep", "shards")


def main(argv: list[str] | None = None) -> int:
    """Run the scenarios in parallel processes, print the counts; return 1 if a comparison or a process failed."""
    parser = ScriptParser(prog="soak", description=description)
    parser.add_argument("--kills", type=int, default=200, help="random kills, and as many during saving (default 200)")
    parser.add_argument("--gloo_kills", type=int, default=20, help="the same for two processes (default 20)")
    parser.add_argument("--study_kills", type=int, default=10, help="of a study, and of one repeated (default 10)")
    parser.add_argument("--label_kills", type=int, default=20, help="of the server of a labeling (default 20)")
    parser.add_argument("--sweep_kills", type=int, default=20, help="of the processes of a sweep (default 20)")
    parser.add_argument(
        "--jobs", type=int, default=len(os.sched_getaffinity(0)), help="runs in parallel (default: number of cores)"
    )
    parser.add_argument(
        "--only", default="", choices=["", *SCENARIOS], help="run this scenario; the counts of the others stay"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the random kills (default 0)")
    parser.add_argument("--out", type=Path, default=RESULT, help="the JSON file of the counts")
    args = parser.parse_args(argv)
    import lit_vision.cli.lightning_cli  # noqa: F401  imported before the forks, once for all of them
    from lit_vision.results import schema

    torch.set_num_threads(1)
    start, environment = time.perf_counter(), schema.collect_environment(args.seed)
    shares = [args.kills // args.jobs + (i < args.kills % args.jobs) for i in range(args.jobs)]
    scenarios: dict[str, list[Callable[[Soak], None]]] = {
        "every": [
            lambda s, m=m, w=w: s.every_step([m], [w], [1, 2])
            for m in (*VIEWS, "Classifier", "Distiller")
            for w in (0, 2)
        ],
        "random": [lambda s, n=n: s.random_steps(n) for n in shares],
        "saving": [lambda s, n=n: s.during_saving(n) for n in shares],
        "gloo": [
            lambda s: s.random_steps(args.gloo_kills, 2, "two processes, random steps"),
            lambda s: s.during_saving(args.gloo_kills, 2, "two processes, during saving"),
            lambda s: s.elastic(3),
        ],
        "study": [
            lambda s: s.run_part("a study's plan repeated", studies.repeat_a_plan, args.study_kills),
            lambda s: s.run_part("a study that plans", studies.keep_decisions, args.study_kills),
        ],
        "labeling": [lambda s: s.run_part("labeling", labeling.kill_the_server, args.label_kills)],
        "shards": [shards.train_from_disk, shards.train_by_http],
        "sweep": [lambda s: s.run_part("sweep", sweeps.kill_the_processes, args.sweep_kills)],
    }
    jobs = [job for name, group in scenarios.items() if args.only in ("", name) for job in group]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    if not args.only or not args.out.is_file():
        args.out.write_text(
            json.dumps({"made_by": "make soak", "failures": 0, "parts": {}, "environment": environment})
        )
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None, prefix="soak-") as folder:
        trained = {"labeling": (), "sweep": ("Plain",), "shards": ("MAE",)}.get(
            args.only, ("SimCLR", "MAE", "Classifier", "Plain")
        )
        soak = Soak(Path(folder), preload=trained, out=args.out)
        running, failed_jobs = 0, 0
        for number, job in enumerate(jobs):
            if running == args.jobs:
                running, failed_jobs = running - 1, failed_jobs + (os.wait()[1] != 0)
            _fork(soak, job, number, args.seed)
            running += 1
        for _ in range(running):
            failed_jobs += os.wait()[1] != 0
    result = json.loads(args.out.read_text())
    if failed_jobs:  # a job that ended in an error of its own has shown nothing
        result["failures"] += failed_jobs
        args.out.write_text(json.dumps(result, indent=2) + "\n")
    seconds = time.perf_counter() - start
    print(f"{args.out}: {result['failures']} failures, {seconds:.0f} s: {json.dumps(result['parts'])}")
    return int(result["failures"] > 0)


def _fork(soak: Soak, job: Callable[[Soak], None], number: int, seed: int) -> None:
    """Run one job in a forked process, which exits with 1 if the job ends in an error."""
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
