"""The store of a labeling: a file of JSON lines to which answers are appended, each on the disk before it counts.

A line is one event: {"event": "open"} names the folder of images, "answer" is a label (or skip, or not sure) of one
image, "undo" takes an answer back, "add_class" and "rename_class" change the list of classes. Nothing is ever changed
in the file: a rename is applied when it is read.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from lit_vision.errors import UserError
from lit_vision.serve.labeling.events import LabelAnswer, LabelingError, check_class_name, now, parse_event

FILE = "labels.jsonl"
_READ_BACK = 1 << 16  # bytes


class LabelStore:
    """Answers of a labeling, read from and appended to a file. Use it as a context manager, which closes the file.

    A last line that a kill cut short is dropped; nothing else ever is. The file is locked while it is open. Several
    threads may call it.

    Args:
        folder: of the labeling; created.
        root: the folder of images.
        multiple: an image may have several labels.

    Attributes:
        answers: every answer by its id, with the classes' present names, those taken back too.
        classes: names, in the order of their first use.

    Raises:
        UserError: the file cannot be opened or is in use, a line is broken, or it belongs to another folder or kind of
            labels.
    """

    def __init__(self, folder: Path, root: Path, multiple: bool = False) -> None:
        self.folder, self.path, self.multiple = folder, folder / FILE, multiple
        self.answers: dict[str, LabelAnswer] = {}
        self.classes: list[str] = []
        self._undone: set[str] = set()
        self._names: set[str] = set()  # of classes, those of the past too
        self._renamed: dict[str, str] = {}  # present names by those of the past
        self._opened: dict[str, Any] = {}
        self._failed_at: int | None = None  # where a line begins that is not complete, bytes
        self._lock = threading.RLock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be opened ({error.strerror}); name another folder by --out") from None
        try:
            self._lock_file()
            self._read()
            self._check_folder(root.resolve())
        except BaseException as error:
            os.close(self._file)
            if isinstance(error, (LabelingError, OSError)):  # the disk is full or fails
                raise UserError(f"{folder}: {error}; or name another folder by --out") from None
            raise

    def __enter__(self) -> LabelStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._lock:
            os.close(self._file)

    def has_answer(self, answer_id: str) -> bool:
        """True if an answer has this id; one that was taken back too."""
        return answer_id in self.answers

    def present_name(self, name: str) -> str:
        """Return the present name of a class; a browser may not know yet that another renamed it."""
        return self._renamed.get(name, name)

    def is_undone(self, answer_id: str) -> bool:
        """True if this answer was taken back."""
        return answer_id in self._undone

    def add_answer(self, answer: LabelAnswer) -> None:
        """Append an answer; when this returns it is on the disk. One whose id is there already is left alone.

        Raises:
            LabelingError: the disk is full or fails; the answer does not count.
        """
        with self._lock:
            if answer.id not in self.answers:
                self._append({"event": "answer", **asdict(answer), "labels": list(answer.labels)})

    def undo(self, answer_id: str, annotator: str) -> None:
        """Append that an answer is taken back.

        Raises:
            LabelingError: there is no such answer, it was taken back before, or the disk fails.
        """
        with self._lock:
            if answer_id not in self.answers:
                raise LabelingError("id: no such answer", 404)
            if answer_id in self._undone:
                raise LabelingError("the answer was taken back before", 409)
            self._append({"event": "undo", "answer": answer_id, "annotator": annotator, "time": now()})

    def add_class(self, name: str) -> None:
        """Append a class; one that is there already is left alone.

        Raises:
            LabelingError: the name cannot be used, or the disk fails.
        """
        with self._lock:
            if (name := check_class_name(name, self.multiple)) not in self.classes:
                self._append({"event": "add_class", "name": name, "time": now()})

    def begin_with(self, names: Sequence[str]) -> None:
        """Append the classes that a command names; one that was renamed since stays as it is."""
        for name in names:
            if name not in self._names:
                self.add_class(name)

    def rename_class(self, name: str, to: str, merge: bool = False) -> None:
        """Append a class's new name, which all its answers have from now on.

        Args:
            name: of a class.
            to: the new name.
            merge: the new name may be that of another class, which then has the images of both.

        Raises:
            LabelingError: no such class, the new name cannot be used or is taken, or the disk fails.
        """
        with self._lock:
            to = check_class_name(to, self.multiple)
            if name not in self.classes:
                raise LabelingError(f"rename: there is no class {name!r}", 404)
            if to in self.classes and to != name and not merge:
                raise LabelingError(f"to: {to!r} is a class already; send merge: true to join the two", 409)
            if to != name:
                self._append({"event": "rename_class", "name": name, "to": to, "time": now()})

    def _lock_file(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"{self.path}: another lit-vision label has it open; stop that one, or give --name another"
            ) from None

    def _read(self) -> None:
        """Read all lines, and remove the rest of a line that a kill cut short."""
        content = bytearray()
        while piece := os.pread(self._file, _READ_BACK, len(content)):
            content += piece
        lines = bytes(content).split(b"\n")
        rest = lines.pop()
        for number, line in enumerate(lines, 1):
            try:
                self._apply(parse_event(line))
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise UserError(
                    f"{self.path}, line {number}: is no line of a labeling ({error}); correct it, or take a copy "
                    "of the file from before it was changed"
                ) from None
        if not rest:
            return
        try:
            event = parse_event(rest)  # complete but for the end of the line: an editor removed it
        except (ValueError, KeyError, TypeError, RecursionError):
            os.ftruncate(self._file, len(content) - len(rest))
        else:
            os.write(self._file, b"\n")
            self._apply(event)
        os.fsync(self._file)

    def _check_folder(self, root: Path) -> None:
        """Refuse a store of another folder that is still there, or of another kind of labels; note a new place."""
        opened = self._opened
        if opened and opened["multiple"] != self.multiple:
            has, flag = ("several labels", "add") if opened["multiple"] else ("one label", "leave out")
            raise UserError(f"{self.path}: has {has} an image; {flag} --multiple, or give --name another")
        if opened and opened["root"] != str(root):
            if os.path.isdir(opened["root"]):
                raise UserError(f"{self.path}: holds the labels of {opened['root']}; give --name another")
            opened = {}
        if not opened:
            self._append({"event": "open", "root": str(root), "multiple": self.multiple, "time": now()})
            folder = os.open(self.folder, os.O_RDONLY)
            try:
                os.fsync(folder)  # the file's name too is on the disk
            finally:
                os.close(folder)

    def _append(self, event: Mapping[str, Any]) -> None:
        """Write an event to the disk, then apply it."""
        line = json.dumps(event, allow_nan=False).encode() + b"\n"  # ASCII: what is not UTF-8 in a path is escaped
        end = os.fstat(self._file).st_size if self._failed_at is None else self._failed_at
        try:
            if self._failed_at is not None:
                os.ftruncate(self._file, end)
            self._failed_at, rest = end, line
            while rest:
                rest = rest[os.write(self._file, rest) :]  # all, unless the disk is full
            os.fsync(self._file)
        except OSError as error:
            with contextlib.suppress(OSError):  # else before the next line
                os.ftruncate(self._file, end)
                self._failed_at = None
            raise LabelingError(f"{FILE}: cannot be written ({error.strerror}); make room", 507) from None
        self._failed_at = None
        self._apply(parse_event(line))

    def _apply(self, event: Mapping[str, Any]) -> None:
        kind = event["event"]
        if kind == "answer":
            values = {name: event[name] for name in LabelAnswer.__dataclass_fields__}
            answer = LabelAnswer(**{**values, "labels": tuple(event["labels"])})
            if answer.id not in self.answers:
                self.answers[answer.id] = answer
                for name in answer.labels:
                    self._take_name(name)
        elif kind == "undo":
            self._undone.add(self.answers[event["answer"]].id)
        elif kind == "add_class":
            self._take_name(event["name"])
        elif kind == "rename_class":
            name, to = event["name"], event["to"]
            self.classes = list(dict.fromkeys(to if other == name else other for other in self.classes))
            self._names.add(to)
            self._renamed = {old: to if new == name else new for old, new in self._renamed.items() if old != to}
            self._renamed[name] = to
            for answer in self.answers.values():
                if name in answer.labels:
                    labels = tuple(dict.fromkeys(to if label == name else label for label in answer.labels))
                    self.answers[answer.id] = replace(answer, labels=labels)
        else:
            self._opened = dict(event)

    def _take_name(self, name: str) -> None:
        """Add the name of a class, unless it is there."""
        if name not in self.classes:
            self.classes.append(name)
        self._names.add(name)
        self._renamed.pop(name, None)  # the name of another class before
