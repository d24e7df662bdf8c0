"""Check and measure this package on a GPU in a few minutes, part by part.

    python experiments/gpu_check.py --minutes 8 --out runs/gpu_check
    python experiments/gpu_check.py --device cpu --minutes 5 --out runs/gpu_check --only resume,steps

Needs Python 3.10 or later, this checkout and its packages, lightly and transformers for the comparisons, no network, no
installation. The parts stand in gpu_checks/. Each runs in a process of its own and may use its share of the time that
is left, so that what one part saves is the next one's. DIR/<part>.json is written after each measurement and holds
{part, status, error, seconds, limit_seconds, environment, rows, left_out, failures, facts}; its status is "running"
until the part is over. A part that fails, crashes or is out of time is a result too: it keeps what it had measured.
DIR/summary.json holds the device, versions, commit and the status of each part. `--device cpu` runs the same code at
toy sizes, whose numbers mean nothing.
`--report DIR` runs nothing and prints DIR's files as Markdown.
Exit code: 0 if each part wrote its file, whatever its status; 1 if not; 2 for wrong arguments.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the package need not be installed

from lit_vision.cli.parser import ScriptParser
from lit_vision.errors import UserError
from lit_vision.io.atomic import remove_temporaries, write_json
from lit_vision.results.environment import collect_environment

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Part:
    """One part of the check.

    Attributes:
        name: of the part and of its JSON file.
        share: of --minutes.
        function: in gpu_checks/, as FILE.FUNCTION.
        content: what it does.
    """

    name: str
    share: float
    function: str
    content: str


PARTS = (
    Part("tests", 0.14, "runs.gpu_tests", "tests/test_gpu.py"),
    Part(
        "resume", 0.23, "runs.resume", "bf16 runs of the debug recipes, killed and resumed, against uninterrupted ones"
    ),
    Part("steps", 0.23, "steps.steps", "training steps of MAE and SimCLR against lightly's and transformers'"),
    Part("ntxent", 0.05, "loss.nt_xent_sizes", "NT-Xent: time and memory by number of pairs"),
    Part("input", 0.13, "images.input_pipeline", "JPEG files to batches, against the steps"),
    Part("predict", 0.09, "images.predict_folder", "lit-vision predict over JPEG files"),
    Part("study", 0.13, "runs.study", "a short study of the embedded images"),
)
OFFLINE = {"WANDB_MODE": "disabled", "HF_HUB_OFFLINE": "1", "NO_ALBUMENTATIONS_UPDATE": "1", "MPLBACKEND": "Agg"}
PACKAGES = ("torch", "torchvision", "lightning", "timm", "torchmetrics", "lightly", "transformers", "numpy")
LAST_LINES = 12  # of the output, kept as the error of a part that failed


def run_with_limit(command: Sequence[str], seconds: float, log: Path, environment: dict[str, str]) -> tuple[str, str]:
    """Run a command, kill it and all processes of its group at the time limit; return its status and its last lines.

    Args:
        command: program and arguments.
        seconds: the limit.
        log: file for its output.
        environment: variables of the command.

    Returns:
        ("ok", ""), or ("failed" or "out of time", the end of the output).
    """
    with open(log, "wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment, cwd=log.parent, start_new_session=True
        )
        try:
            code = process.wait(max(0.0, seconds))
            status, reason = ("ok", "") if code == 0 else ("failed", f"exit code {code}")
        except subprocess.TimeoutExpired:
            status, reason = "out of time", f"killed after {seconds:.0f} s"
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)  # also what a process that crashed has left
            process.wait()
    if status == "ok":
        return status, ""
    lines = log.read_text(encoding="utf-8", errors="replace").replace(f"{ROOT}/", "").splitlines()
    return status, "\n".join([*lines[-LAST_LINES:], reason])


def part_command(part: Part, options: argparse.Namespace, seconds: float, work: Path) -> list[str]:
    """Return the command that runs a part and writes its file as it goes."""
    command = [sys.executable, "-m", "gpu_checks", part.function, "--part", part.name, "--device", options.device]
    out = options.out / f"{part.name}.json"
    return [*command, "--out", str(out), "--work", str(work), "--seconds", f"{seconds:.0f}"]


def run_part(part: Part, options: argparse.Namespace, seconds: float, work: Path) -> dict[str, Any]:
    """Run one part, write its file, and return what the file holds.

    Raises:
        UserError: the file cannot be written.
    """
    path = options.out / f"{part.name}.json"
    folders = [str(ROOT), str(ROOT / "experiments"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, **OFFLINE, "PYTHONPATH": os.pathsep.join(filter(None, folders))}
    if options.device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    start = time.monotonic()
    command = part_command(part, options, seconds, work)
    status, error = run_with_limit(command, seconds, work / f"{part.name}.log", environment)
    taken = time.monotonic() - start
    remove_temporaries(path)
    found = read_result(path)
    if status == "failed" and found.get("failures"):
        error = "\n".join(f"{failure['what']}: {failure['error']}" for failure in found["failures"])
    result: dict[str, Any] = {"part": part.name, "status": status, "error": error}
    result |= {"seconds": round(taken, 1), "limit_seconds": round(seconds, 1)}
    write_json(path, result | {key: value for key, value in found.items() if key not in result})
    return {**found, **result}


def read_result(path: Path) -> dict[str, Any]:
    """Return what a part has written so far, {} if nothing."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def summarize(results: list[dict[str, Any]], options: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """Return the content of summary.json: device, versions, commit, and status and seconds of each part."""
    environment = collect_environment(packages=PACKAGES)
    seen: dict[str, Any] = next((r["environment"] for r in results if r.get("environment")), {})
    environment |= {"commit": options.commit or environment["commit"], **seen}  # the parts have seen the GPU
    parts = {r["part"]: {"status": r["status"], "seconds": r["seconds"]} for r in results}
    return {"made_by": "experiments/gpu_check.py", **environment, "seconds": round(seconds, 1), "parts": parts}


def print_result(result: dict[str, Any]) -> None:
    """Print what a part measured."""
    print(f"\n## {result['part']}: {result['status']}, {result['seconds']:.0f} s", flush=True)
    for row in result.get("rows", ()):
        against = "" if row["against"] == "-" else f" of {row['against']}"
        print(f"  {row['what']}: {row['value']:.4g} {row['unit']}{against}")
    for item in result.get("left_out", ()):
        print(f"  {item['what']}: left out, {item['reason']}")
    if result["error"]:
        print("  " + result["error"].replace("\n", "\n  "), flush=True)


def to_markdown(folder: Path) -> str:
    """Return the files of a check as Markdown: device, versions, commit, and a table of each part's numbers."""
    summary = read_result(folder / "summary.json")
    versions = ", ".join(f"{name} {version}" for name, version in summary["versions"].items() if version)
    seconds = f"{summary['seconds']:.0f} s in all"
    lines = [
        f"# GPU check: {summary['device']}",
        "",
        f"`experiments/gpu_check.py` at commit {summary['commit']}, {summary['cores']} CPU cores, "
        f"{seconds}; {versions}.",
    ]
    for part in PARTS:
        result = read_result(folder / f"{part.name}.json")
        if not result:
            continue
        lines += ["", f"## {part.name}: {result['status']}", "", f"{part.content}; {result['seconds']:.0f} s", ""]
        lines += ["| what | value | against |", "|---|---|---|"]
        for row in result.get("rows", ()):
            lines.append(
                f"| {row['what']} | {row['value']:.4g}{' ' * bool(row['unit'])}{row['unit']} | {row['against']} |"
            )
        lines += [f"| {item['what']} | left out | {item['reason']} |" for item in result.get("left_out", ())]
        lines += [f"| {item['what']} | failed | {item['error']} |" for item in result.get("failures", ())]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Read the arguments, run the parts, write their files and the summary."""
    options = parse(argv)
    if options.report:
        print(to_markdown(options.report), end="")
        return 0
    chosen = [part for part in PARTS if part.name in options.only]
    for name in ("summary", *(part.name for part in chosen)):
        (options.out / f"{name}.json").unlink(missing_ok=True)
    results: list[dict[str, Any]] = []
    start, end = time.monotonic(), time.monotonic() + 60 * options.minutes
    with tempfile.TemporaryDirectory(prefix="gpu-check-", ignore_cleanup_errors=True) as work:
        for i, part in enumerate(chosen):
            share = part.share / sum(later.share for later in chosen[i:])
            try:
                results.append(run_part(part, options, share * max(0.0, end - time.monotonic()), Path(work)))
            except UserError as error:
                print(f"gpu_check.py: {error}", file=sys.stderr)
                continue
            print_result(results[-1])
    summary = summarize(results, options, time.monotonic() - start)
    write_json(options.out / "summary.json", summary)
    versions = (f"{name} {summary['versions'].get(name, '-')}" for name in ("python", "torch", "lightning", "timm"))
    print(f"\n{summary['device']}; {', '.join(versions)}\n")
    print("| part | status | seconds | limit | content |\n|---|---|---|---|---|")
    for part, result in ((part, result) for result in results for part in chosen if part.name == result["part"]):
        print(
            f"| {part.name} | {result['status']} | {result['seconds']:.0f} | {result['limit_seconds']:.0f} "
            f"| {part.content} |"
        )
    return int(len(results) < len(chosen))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options; ends with exit code 2 for wrong ones."""
    parser = ScriptParser(prog="gpu_check.py", description=__doc__)
    names = [part.name for part in PARTS]
    parser.add_argument("--minutes", type=float, default=8.0, help="in all (default: 8)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the JSON files")
    parser.add_argument("--report", type=Path, metavar="DIR", help="print the files of an earlier check as Markdown")
    parser.add_argument(
        "--device", choices=("auto", "cuda", "cpu"), default="auto", help="auto: cuda if torch sees one (default)"
    )
    parser.add_argument("--only", metavar="PART,...", default=",".join(names), help=f"of {', '.join(names)}")
    parser.add_argument("--commit", metavar="NAME", help="the version checked, where the checkout is not one of git")
    options = parser.parse_args(argv)
    if options.report:
        if not read_result(options.report / "summary.json"):
            parser.error(f"--report: {options.report} has no summary.json; name the --out of a check")
        return options
    if options.out is None:
        parser.error("--out: name a folder for the JSON files")
    options.only = [name.strip() for name in options.only.split(",")]
    for name in options.only:
        if name not in names:
            parser.error(f"--only: {name!r} is not one of {', '.join(names)}")
    if not 0 < options.minutes < float("inf"):
        parser.error(f"--minutes: {options.minutes:g}; give more than 0")
    options.out = options.out.resolve()
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out: {options.out} cannot be made ({error.strerror}); name another folder")
    return options


if __name__ == "__main__":
    sys.exit(main())
