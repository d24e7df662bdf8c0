"""A labeling: images, answers, classes and the order of the questions, as the API needs them."""

from __future__ import annotations

import hashlib
import os
import secrets
import string
import threading
from collections import Counter
from collections.abc import Collection, Sequence
from datetime import datetime, timezone
from typing import Any, Protocol

import numpy as np

from lit_vision.io.text import printable
from lit_vision.serve.labeling.events import (
    KINDS,
    LONGEST_ID,
    AnswerConflictError,
    LabelAnswer,
    LabelingError,
    check_class_name,
    now,
)
from lit_vision.serve.labeling.images import ImageReadError, LabelImages
from lit_vision.serve.labeling.matching import MatchedAnswers, match_answers
from lit_vision.serve.labeling.queue import ImageQueue, QueuedImage
from lit_vision.serve.labeling.store import LabelStore

LOOKAHEAD = 4  # images whose pictures are made before they are asked for
CLASS_KEYS = "123456789" + string.ascii_lowercase  # keys of the page for the first classes


_WITHOUT_MODEL: dict[str, Any] = {
    "strategy": "random",
    "problem": "",
    "model": None,
    "audit": None,
    "curve": [],
    "more": "",
}


class LearnsAlong(Protocol):
    """A model that learns from the answers; see learner.py."""

    def notify(self) -> None:
        """Say that there are new answers."""

    def rename_class(self, name: str, to: str) -> None:
        """Take over the new name of a class."""

    def propose(self, number: int) -> dict[str, Any] | None:
        """Return {"labels", "confidence"} for an image; None without a model or its feature."""

    def state(self) -> dict[str, Any]:
        """Return what a page gets of the model and its accuracy."""


class Labeling:
    """Answers questions of the page and takes its answers. Several threads may call it.

    Args:
        images: to label.
        store: of the answers.
        annotator: who labels, for the store.
        classes: names that are there from the beginning.

    Attributes:
        matched: how the stored answers fit the files.
        queue: of the next images.
        learner: None if nothing learns along.
    """

    def __init__(
        self, images: LabelImages, store: LabelStore, annotator: str = "", classes: Sequence[str] = ()
    ) -> None:
        self.images, self.store, self.annotator = images, store, annotator
        self.run = secrets.token_hex(8)
        path = os.fsencode(store.path.resolve())
        self.store_id = hashlib.blake2b(path, digest_size=8).hexdigest()  # answers may wait in a browser for this store
        self.lock = threading.RLock()
        self.matched: MatchedAnswers = match_answers(store, images)
        self.histories = self.matched.histories
        self.queue = ImageQueue(images.paths)
        self._audit = frozenset(self.queue.audit_order)
        self.learner: LearnsAlong | None = None
        store.begin_with(classes)

    def answer_of(self, number: int) -> LabelAnswer | None:
        """Return the present answer to an image; None if there is none."""
        history = self.histories.get(number)
        return self.store.answers[history[-1]] if history else None

    def answers(self) -> dict[int, LabelAnswer]:
        """Return all present answers by the number of the image."""
        with self.lock:
            return {number: self.store.answers[ids[-1]] for number, ids in self.histories.items() if ids}

    def is_confirmed(self, number: int) -> bool:
        """True if the present labels of an image were given twice in a row: somebody looked at it again."""
        last = [self.store.answers[answer_id] for answer_id in self.histories.get(number, [])[-2:]]
        return len(last) == 2 and last[0].kind == last[1].kind and set(last[0].labels) == set(last[1].labels)

    def is_audit(self, number: int) -> bool:
        """True if an image belongs to the sample that measures accuracy."""
        return number in self._audit

    def is_done(self, number: int) -> bool:
        """True for an image that is answered or cannot be read."""
        return bool(self.histories.get(number)) or number in self.images.unreadable

    def done(self) -> np.ndarray:
        """Return `is_done` of all images, (N,) bool."""
        found = np.zeros(len(self.images), bool)
        with self.lock:
            found[[number for number, ids in self.histories.items() if ids]] = True
        found[list(self.images.unreadable)] = True
        return found

    def learned_from(self) -> list[tuple[int, tuple[str, ...]]]:
        """Return number and labels of the images that a model may learn from, in the order of the answers."""
        with self.lock:
            found = {
                ids[-1]: number
                for number, ids in self.histories.items()
                if ids and number not in self._audit and not self.store.answers[ids[-1]].audit
            }
            answers = [self.store.answers[i] for i in self.store.answers if i in found]
            return [(found[answer.id], answer.labels) for answer in answers if answer.kind == "label"]

    def audited(self) -> list[tuple[int, tuple[str, ...]]]:
        """Return number and labels of the images that measure accuracy: the sample in its order, to its first gap.

        An image of it that was answered out of order, found by search say, counts when all before it are answered:
        else what people look for would decide what is measured.
        """
        found = []
        with self.lock:
            for number in self.queue.audit_order:
                answer = self.answer_of(number)
                if answer is None:
                    if number in self.images.unreadable:
                        continue
                    break
                if answer.kind == "label":
                    found.append((number, answer.labels))
        return found

    def state(self) -> dict[str, Any]:
        """Return counts and classes, and what the learner says."""
        answers = self.answers()
        kinds, midnight = Counter(answer.kind for answer in answers.values()), _midnight()
        return {
            "root": printable(self.images.root.name),
            "images": len(self.images),
            "answered": len(answers),
            "labeled": kinds["label"],
            "skipped": kinds["skip"],
            "unsure": kinds["unsure"],
            "today": sum(answer.time >= midnight for answer in answers.values()),
            "unreadable": len(self.images.unreadable),
            "multiple": self.store.multiple,
            "classes": self.class_list(answers.values()),
            "annotator": self.annotator,
            "run": self.run,
            "store": self.store_id,
            "features": {"done": 0, "total": len(self.images)},
            **(self.learner.state() if self.learner else _WITHOUT_MODEL),
        }

    def class_list(self, answers: Collection[LabelAnswer] | None = None) -> list[dict[str, Any]]:
        """Return the classes with their keys on the page and their numbers of images."""
        answers = self.answers().values() if answers is None else answers
        counts = Counter(name for answer in answers for name in answer.labels)
        keys = dict(zip(self.store.classes, CLASS_KEYS))
        return [{"name": name, "key": keys.get(name, ""), "images": counts[name]} for name in list(self.store.classes)]

    def next(self, count: int, held: Collection[int]) -> list[dict[str, Any]]:
        """Return the next images to label, without those that the browser holds already; begins to read them."""
        with self.lock:
            held = {number for number in held if 0 <= number < len(self.images) and not self.histories.get(number)}
            done = [number for number, ids in self.histories.items() if ids]
            audits = sum(number in self._audit for number in done)
            choices = self.queue.next(count + LOOKAHEAD, held, self.is_done, (audits, len(done) - audits))
            images = [self.item(choice.number, choice) for choice in choices[:count]]
        self.images.prepare([choice.number for choice in choices])
        return images

    def item(self, number: int, choice: QueuedImage | None = None) -> dict[str, Any]:
        """Return an image as the page gets it.

        Raises:
            LabelingError: no such image.
        """
        self.check_number(number)
        answer, audit = self.answer_of(number), self.is_audit(number)
        hidden = audit and answer is None  # or it would influence what it is measured by
        return {
            "number": number,
            "path": printable(self.images.paths[number]),
            "audit": audit,
            "reason": choice.reason if choice else "",
            "proposal": None if hidden or self.learner is None else self.learner.propose(number),
            "answer": answer.shown() if answer else None,
        }

    def picture(self, number: int, side: int) -> tuple[bytes, str]:
        """Return an image as a JPEG, and the blake2b of the file that it was made of.

        Raises:
            LabelingError: no such image, or it cannot be read.
        """
        self.check_number(number)
        try:
            return self.images.preview(number, side)
        except ImageReadError as error:
            raise LabelingError(f"the image cannot be read: {error}", 404) from None

    def answer(
        self,
        number: int,
        kind: str,
        labels: Sequence[str],
        answer_id: str,
        replaces: str | None,
        seen: str | None = None,
    ) -> LabelAnswer:
        """Store an answer; when this returns it is on the disk.

        Args:
            number: of the image.
            kind: one of KINDS.
            labels: names of classes, also those of before a rename; one for a "label", unless an image may have
                several; none for others.
            answer_id: made by the browser; the same id again changes nothing and gives the same answer.
            replaces: id of the answer that the browser saw; None if it saw none.
            seen: blake2b of the file as the browser saw it; None: as it was last sent to any browser.

        Raises:
            AnswerConflictError: the image has another answer than `replaces`.
            LabelingError: a value that cannot be, or (410) the file has changed since it was shown, or is gone.
        """
        self.check_number(number)
        self._check(kind, labels, answer_id)
        path = self.images.paths[number]
        with self.lock:
            if (known := self._known(answer_id, path)) is not None:
                return known
        try:
            _, state = self.images.read(number)
        except ImageReadError as error:
            raise LabelingError(f"the file cannot be read any more: {error}", 410) from None
        seen = seen or self.images.sent.get(number)
        if seen is not None and seen != state.blake2b:
            self.images.forget(number)
            raise LabelingError("the file has changed since it was shown; look at it again", 410)
        with self.lock:
            if (known := self._known(answer_id, path)) is not None:
                return known
            present = self.answer_of(number)
            if (present.id if present else None) != replaces:
                raise AnswerConflictError(present)
            labels = self._checked_labels(labels)
            audit = self.is_audit(number)
            predicted = self.learner.propose(number) if audit and self.learner else None
            answer = LabelAnswer(
                answer_id,
                path,
                state.size,
                state.mtime_ns,
                state.blake2b,
                kind,
                tuple(labels),
                self.annotator,
                now(),
                audit,
                predicted,
            )
            self.store.add_answer(answer)
            self.histories.setdefault(number, []).append(answer.id)
        self._notify()
        return answer

    def undo(self, answer_id: str) -> tuple[int, LabelAnswer | None]:
        """Take an answer back; returns the image's number and its previous answer.

        Raises:
            LabelingError: there is no such answer, it was taken back before, or it is not the present one.
        """
        with self.lock:
            found = [number for number, ids in self.histories.items() if answer_id in ids]
            if found and self.histories[found[0]][-1] != answer_id:
                raise AnswerConflictError(self.answer_of(found[0]))
            if not found and self.store.has_answer(answer_id) and not self.store.is_undone(answer_id):
                raise LabelingError("the file of this answer is gone or has changed", 410)
            self.store.undo(answer_id, self.annotator)
            self.histories[found[0]].remove(answer_id)
            previous = self.answer_of(found[0])
        self._notify()
        return found[0], previous

    def add_class(self, name: str) -> None:
        """Add a class; raises as `LabelStore.add_class`."""
        with self.lock:
            self.store.add_class(name)

    def rename_class(self, name: str, to: str, merge: bool) -> None:
        """Rename a class; raises as `LabelStore.rename_class`."""
        with self.lock:
            self.store.rename_class(name, to, merge)
        if self.learner:
            self.learner.rename_class(name, to.strip())

    def check_number(self, number: int) -> None:
        """Raise a LabelingError unless there is an image of this number."""
        if not 0 <= number < len(self.images):
            raise LabelingError("number: there is no such image", 404)

    def number_of(self, number: int, path: object = None) -> int:
        """Return the number of the image that a browser saw as `number` at `path`.

        An answer may have waited for a server that was started again, and numbers its images anew.

        Raises:
            LabelingError: there is no such image any more (410).
        """
        self.check_number(number if path is None else 0)
        paths = self.images.paths
        if path is None or (0 <= number < len(paths) and printable(paths[number]) == path):
            return number
        for other, name in enumerate(paths):
            if printable(name) == path:
                return other
        raise LabelingError("path: there is no such image any more", 410)

    def _notify(self) -> None:
        if self.learner:
            self.learner.notify()

    def _known(self, answer_id: str, path: str) -> LabelAnswer | None:
        """Return the stored answer of an id, which the browser has sent before."""
        known = self.store.answers.get(answer_id)
        if known is not None and known.path != path:
            raise LabelingError("id: is that of an answer to another image; make a new one")
        return known

    def _check(self, kind: str, labels: Sequence[str], answer_id: str) -> None:
        if kind not in KINDS:
            raise LabelingError(f"kind: must be one of {', '.join(KINDS)}")
        if not 0 < len(answer_id) <= LONGEST_ID or not answer_id.isprintable():
            raise LabelingError(f"id: must have 1 to {LONGEST_ID} visible characters")
        if kind != "label" and labels:
            raise LabelingError(f"labels: an answer of kind {kind} has none")
        if kind == "label" and not self.store.multiple and len(labels) != 1:
            raise LabelingError("labels: give one; lit-vision label --multiple takes several")
        if len(set(labels)) < len(labels):
            raise LabelingError("labels: one of them is given twice")

    def _checked_labels(self, labels: Sequence[str]) -> list[str]:
        """Return the present names of classes, which another browser may have renamed or joined."""
        names = list(dict.fromkeys(self.store.present_name(label) for label in labels))
        for name in names:
            if name not in self.store.classes:
                check_class_name(name, self.store.multiple)
                raise LabelingError(f"labels: there is no class {name!r}; add it first")
        return names


def _midnight() -> str:
    """Return the beginning of this machine's day as the store writes times."""
    begin = datetime.now().astimezone().replace(hour=0, minute=0, second=0, microsecond=0)
    return begin.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S")
