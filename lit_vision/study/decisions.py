"""Decisions of a study that depend on the clock, stored before they are acted on, so that a study can be replayed."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lit_vision.errors import UserError
from lit_vision.io.atomic import atomic_write
from lit_vision.results.schema import SCHEMA

END = "end"  # name of the last decision of a study that ran to its end


class Decisions:
    """Named decisions in a file of JSON lines, plan.jsonl, each appended and fsynced before it is acted on.

    The first line holds a hash of what the study depends on besides the clock, and the budget; the others are
    {"decision": name, "value": value, "seconds": of the study when it was made}. A line that a kill cut short is
    dropped. A file made for other inputs is replaced.

    Args:
        path: of plan.jsonl.
        inputs: hash of data and settings.
        budget: seconds of the study; a file made for another budget is replaced, and one to replay may have any.
        replay: plan.jsonl of a study that ran to its end; all its decisions are taken, and none is made.
        clock: returns seconds that only grow; for tests.

    Attributes:
        id: random text of the plan: pieces made by another plan may have been cut at other steps.

    Raises:
        UserError: `replay` cannot be read, is of other inputs, or of a study that did not end.
    """

    def __init__(
        self,
        path: Path,
        inputs: str,
        budget: float,
        replay: Path | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self.path, self.replaying, self._clock = path, replay is not None, clock
        self._values: dict[str, Any] = {}
        self._before = 0.0  # seconds of the study's earlier runs
        self._started = clock()
        if replay is not None:
            lines = read_finished(replay)
            if lines[0].get("inputs") != inputs:
                raise UserError(
                    f"--plan {replay}: was made for other images or settings; repeat those of its study, or leave "
                    "--plan away"
                )
        else:
            lines = _read(path)
            header = {"schema": SCHEMA, "inputs": inputs, "budget": budget}
            if not lines or {**lines[0], "id": ""} != {**header, "id": ""}:
                lines = [{**header, "id": secrets.token_hex(8)}]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        atomic_write(path, lambda file: file.write_text(text, encoding="utf-8"))
        self.id = str(lines[0]["id"])
        for line in lines[1:]:
            self._values[line["decision"]] = line["value"]
            self._before = max(self._before, line["seconds"])

    @property
    def found(self) -> bool:
        """True if an earlier run has stored decisions, or a plan is replayed."""
        return bool(self._values)

    @property
    def elapsed(self) -> float:
        """Seconds that the study has taken, those of earlier runs up to their last decision included."""
        return self._before + self._clock() - self._started

    def get(self, name: str, default: Any = None) -> Any:
        """Return a stored value, or `default`."""
        return self._values.get(name, default)

    def add(self, name: str, value: Any) -> Any:
        """Store a decision on the disk and return its value as JSON gives it back.

        Raises:
            UserError: a plan is replayed that does not hold it.
        """
        if self.replaying:
            raise UserError(f"--plan: holds no decision {name!r}; it is of another version or was changed")
        line = json.dumps({"decision": name, "value": value, "seconds": round(self.elapsed, 3)})
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(line + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error.strerror}); make room, then repeat") from error
        self._values[name] = json.loads(line)["value"]
        return self._values[name]

    def decide(self, name: str, compute: Callable[[], Any]) -> Any:
        """Return the stored value of a decision; if there is none, compute it and store it.

        Args:
            name: unique in the study.
            compute: may ask the clock; returns plain data.
        """
        if name in self._values:
            return self._values[name]
        return self.add(name, None if self.replaying else compute())

    def finish(self) -> None:
        """Mark the study as complete, so that its plan can be replayed."""
        if END not in self._values:
            self.add(END, True)


def read_finished(path: Path) -> list[dict[str, Any]]:
    """Return the lines of the plan of a study that ran to its end.

    Raises:
        UserError: the file is missing or no plan, or its study did not end.
    """
    lines = _read(path)
    if not lines:
        raise UserError(
            f"--plan {path}: {'is no plan.jsonl of a study' if path.exists() else 'no such file'}; name one"
        )
    if lines[-1].get("decision") != END:
        raise UserError(f"--plan {path}: its study did not end; run that study again to its end first")
    return lines


def _read(path: Path) -> list[dict[str, Any]]:
    """Return the complete lines of a file; [] if there is none or it does not begin as a plan."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    lines: list[dict[str, Any]] = []
    for line in text.splitlines(keepends=True):
        try:
            record = json.loads(line)
        except ValueError:
            break
        expected = {"decision", "value", "seconds"} if lines else {"schema", "inputs", "budget", "id"}
        if not line.endswith("\n") or not isinstance(record, dict) or set(record) != expected:
            break
        if lines and not (isinstance(record["decision"], str) and isinstance(record["seconds"], int | float)):
            break
        lines.append(record)
    return lines


@contextlib.contextmanager
def only_run(folder: Path) -> Iterator[None]:
    """Hold a run's folder during the block: two studies in it at a time would mix their decisions and files.

    Raises:
        UserError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "study.log", "a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"--run_dir {folder}: another study runs in it; wait for its end, or name another folder"
            ) from None
        except OSError:
            pass  # a file system without locks
        yield
