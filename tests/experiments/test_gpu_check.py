"""experiments/gpu_check.py: time limit, failures as results, files, exit codes; the parts themselves need minutes."""

import contextlib
import json
import math
import os
import signal
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))
import gpu_check

WRITE = "import sys, json, pathlib; pathlib.Path(sys.argv[1]).write_text(json.dumps({'rows': [], 'facts': {'a': 1}}));"


@pytest.fixture
def scripts(monkeypatch):
    """Return {part: Python code}, which runs instead of the parts; its first argument is the part's JSON file."""
    found: dict[str, str] = {}

    def command(part, options, seconds, work):
        return [sys.executable, "-I", "-S", "-c", found[part.name], str(options.out / f"{part.name}.json")]

    monkeypatch.setattr(gpu_check, "part_command", command)
    return found


def test_a_part_that_fails_crashes_or_is_out_of_time_is_a_result(scripts, tmp_path, capsys) -> None:
    scripts["tests"] = WRITE
    scripts["resume"] = WRITE + "print('last words'); sys.exit(3)"
    scripts["steps"] = "import os; os.abort()"
    scripts["ntxent"] = WRITE + "import time; time.sleep(3600)"
    out = tmp_path / "out"
    arguments = ["--out", str(out), "--minutes", "0.03", "--only", "tests,resume,steps,ntxent", "--device", "cpu"]
    assert gpu_check.main(arguments) == 0
    found = {path.stem: json.loads(path.read_text()) for path in out.iterdir()}
    assert set(found) == {"tests", "resume", "steps", "ntxent", "summary"}
    statuses = {name: found[name]["status"] for name in ("tests", "resume", "steps", "ntxent")}
    # a slow machine may not even start a script in time, which is a result as well
    assert statuses["ntxent"] == "out of time"
    assert {statuses["resume"], statuses["steps"]} <= {"failed", "out of time"}
    assert {name: part["status"] for name, part in found["summary"]["parts"].items()} == statuses
    for name, status in statuses.items():
        assert {"part", "status", "error", "seconds", "limit_seconds"} <= found[name].keys()
        assert bool(found[name]["error"]) == (status != "ok")
    assert "| ntxent | out of time |" in capsys.readouterr().out


def test_what_was_measured_before_the_end_is_kept_with_the_last_lines(scripts, tmp_path) -> None:
    scripts["resume"] = WRITE + "print('last words'); sys.exit(3)"
    options = gpu_check.parse(["--out", str(tmp_path / "out"), "--device", "cpu"])
    result = gpu_check.run_part(gpu_check.PARTS[1], options, 1800, tmp_path)
    assert result == json.loads((tmp_path / "out" / "resume.json").read_text())
    assert (result["status"], result["facts"]) == ("failed", {"a": 1})
    assert "last words" in result["error"]
    assert "3" in result["error"].splitlines()[-1]
    assert [path.name for path in options.out.iterdir()] == ["resume.json"]


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="reads /proc")
def test_the_limit_ends_the_processes_that_a_part_has_started(tmp_path) -> None:
    script = (
        "import subprocess, time; p = subprocess.Popen(['sleep', '3600']); print(p.pid, flush=True); time.sleep(3600)"
    )
    log = tmp_path / "log"
    seconds = 0.1
    while True:  # until the machine was fast enough to start both
        status, _ = gpu_check.run_with_limit([sys.executable, "-S", "-c", script], seconds, log, dict(os.environ))
        assert status == "out of time"
        if log.read_text().strip():
            break
        seconds *= 2
    child = Path(f"/proc/{log.read_text().split()[0]}/stat")
    with contextlib.suppress(FileNotFoundError):
        while child.read_text().rpartition(")")[2].split()[0] not in "ZX":  # a zombie until its new parent has noticed
            time.sleep(0.01)


def test_a_file_that_cannot_be_written_is_exit_code_1(scripts, tmp_path, monkeypatch, capsys) -> None:
    scripts["tests"] = scripts["resume"] = WRITE
    write = gpu_check.write_json

    def full_disk(path, value):
        if path.name == "tests.json":
            raise gpu_check.UserError(f"{path}: cannot be written")
        return write(path, value)

    monkeypatch.setattr(gpu_check, "write_json", full_disk)
    assert gpu_check.main(["--out", str(tmp_path / "out"), "--only", "tests,resume", "--device", "cpu"]) == 1
    assert "tests.json" in capsys.readouterr().err
    assert list(json.loads((tmp_path / "out" / "summary.json").read_text())["parts"]) == ["resume"]


def test_a_report_is_complete_after_each_number_and_keeps_failures(tmp_path) -> None:
    from gpu_checks.report import Report

    path = tmp_path / "steps.json"
    report = Report("steps", path, tmp_path, "cpu", 60, {"device": "a CPU"})
    assert json.loads(path.read_text())["status"] == "running"
    report.add("speed", 2.5, "images/s")
    assert [row["value"] for row in json.loads(path.read_text())["rows"]] == [2.5]
    report.add("loss", math.nan, "nats")
    with report.attempt("compiled"):
        raise RuntimeError("no compiler")
    failures = json.loads(path.read_text())["failures"]
    assert [failure["what"] for failure in failures] == ["loss", "compiled"]
    assert "no compiler" in failures[1]["error"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["steps.json"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--only", "steps,nothing"], "--only"),
        (["--minutes", "0"], "--minutes"),
        (["--minutes", "nan"], "--minutes"),
        (["--device", "tpu"], "--device"),
        (["--out", "file/below"], "--out"),
        (["--report", "."], "summary.json"),
    ],
)
def test_wrong_arguments_are_exit_code_2(tmp_path, monkeypatch, capsys, arguments, named) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    with pytest.raises(SystemExit, match="2"):
        gpu_check.main(["--out", "out", *arguments])
    assert named in capsys.readouterr().err


def test_the_table_of_parts_fits_the_folder_and_names_functions() -> None:
    assert math.isclose(sum(part.share for part in gpu_check.PARTS), 1)
    assert len(gpu_check.PARTS) + 1 <= 8  # files that a remote machine gives back
    folder = Path(gpu_check.__file__).parent / "gpu_checks"
    for part in gpu_check.PARTS:
        file, function = part.function.split(".")
        assert f"\ndef {function}(report: Report) -> None:" in (folder / f"{file}.py").read_text()
        assert part.name.isalnum()


def test_the_committed_report_is_made_from_the_committed_files() -> None:
    folder = gpu_check.ROOT / "experiments" / "results" / "gpu-h100"
    assert (folder / "README.md").read_text() == gpu_check.to_markdown(folder)
    assert len(list(folder.glob("*.json"))) == len(gpu_check.PARTS) + 1


def test_an_interrupt_ends_the_part(tmp_path, monkeypatch) -> None:
    started = []
    popen = gpu_check.subprocess.Popen

    def interrupted(*arguments, **options):
        process = popen(*arguments, **options)
        monkeypatch.setattr(process, "wait", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt), raising=True)
        started.append(process)
        return process

    monkeypatch.setattr(gpu_check.subprocess, "Popen", interrupted)
    with pytest.raises(KeyboardInterrupt):
        gpu_check.run_with_limit(
            [sys.executable, "-S", "-c", "import time; time.sleep(3600)"], 1800, tmp_path / "log", dict(os.environ)
        )
    assert os.waitstatus_to_exitcode(os.waitpid(started[0].pid, 0)[1]) == -signal.SIGKILL
