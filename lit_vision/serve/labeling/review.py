"""Answers to look at again: labels that look wrong, near duplicates with different labels, classes with few labels.

n labeled images, D width of the features.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from lit_vision.evaluation.label_errors import find_label_errors
from lit_vision.io.text import printable
from lit_vision.serve.labeling.events import LabelingError
from lit_vision.serve.labeling.features import FeatureReader
from lit_vision.serve.labeling.session import Labeling

KINDS = ("wrong", "duplicates", "thin", "answers")
PAGE = 24  # items
MOST = 4000  # labeled images that are compared, the newest: cross-validation and all pairs take seconds
DUPLICATE_COSINE = 0.95
FEW_LABELS = 5  # of a class that needs more
ALIKE = 12  # unlabeled images that are shown for a class with few labels
_MOST_PAIRS = 1000


class _Item(NamedTuple):
    """Images to look at again: their numbers, why, a proposal instead of the model's, and a class that lacks images."""

    numbers: list[int]
    text: str
    proposal: dict[str, Any] | None = None
    name: str = ""


class Review:
    """Finds what to look at again; a result is kept until there is another answer. Several threads may call it.

    Args:
        labeling: with the answers.
        features: of its images.
    """

    def __init__(self, labeling: Labeling, features: FeatureReader) -> None:
        self.labeling, self.features = labeling, features
        self._kept: dict[str, tuple[object, list[_Item]]] = {}
        self._lock = threading.Lock()

    def page(self, kind: str, page: int) -> dict[str, Any]:
        """Return {"kind", "total", "items": [{"images", "text"}]} of one page, from 0; items of "thin" have a "class".

        Raises:
            LabelingError: an unknown kind.
        """
        if kind not in KINDS:
            raise LabelingError(f"kind: must be one of {', '.join(KINDS)}")
        find: dict[str, Callable[[], list[_Item]]] = {
            "wrong": self.wrong,
            "duplicates": self.duplicates,
            "thin": self.thin,
            "answers": self.newest,
        }
        with self._lock:
            state = (dict(self.labeling.answers()), self.features.done, list(self.labeling.store.classes))
            if kind not in self._kept or self._kept[kind][0] != state:
                self._kept[kind] = state, find[kind]()
            found = self._kept[kind][1]
        items = []
        for item in found[page * PAGE : (page + 1) * PAGE]:
            images = [self.labeling.item(number) for number in item.numbers]
            if item.proposal is not None:
                images[0]["proposal"] = item.proposal
            items.append({"images": images, "text": item.text, **({"class": item.name} if item.name else {})})
        return {"kind": kind, "total": len(found), "items": items}

    def similar(self, number: int, count: int) -> list[dict[str, Any]]:
        """Return the images that are most similar to one by the cosine of their features, that one left out.

        Raises:
            LabelingError: there is no such image, or its feature is not there (yet).
        """
        self.labeling.check_number(number)
        feature = self.features.of(number)
        if feature is None or self.features.rows is None:
            raise LabelingError("the features of this image are not there yet; try again in a while", 409)
        cosines = _cosines(self.features.rows, feature)
        cosines[number] = -np.inf
        order = np.argsort(-cosines, kind="stable")[:count]
        return [self.labeling.item(int(row)) for row in order if np.isfinite(cosines[row])]

    def wrong(self) -> list[_Item]:
        """Return images whose label a model contradicts that was fitted without them, the most doubtful first."""
        numbers, labels = self._labeled()
        found: list[tuple[float, _Item]] = []
        for title, codes, names in self._questions(labels):
            kept = np.flatnonzero(np.isin(codes, [c for c in set(codes.tolist()) if (codes == c).sum() > 1]))
            seen = sorted(set(codes[kept].tolist()))
            if len(seen) < 2:
                continue
            x = np.asarray(self.features.rows)[[numbers[row] for row in kept]]
            ranking = find_label_errors(x, np.searchsorted(seen, codes[kept])).first_suspects()
            for i in range(len(ranking)):
                given, likely = names[seen[ranking.given[i]]], names[seen[ranking.likely[i]]]
                confidence = float(ranking.confidence[i])
                text = f"labeled {title}{given}; looks like {likely} ({confidence:.0%})"
                proposal = None if title else {"labels": [likely], "confidence": round(confidence, 4)}
                number = numbers[kept[ranking.rows[i]]]
                if not self.labeling.is_confirmed(number):
                    found.append((float(ranking.self_confidence[i]), _Item([number], text, proposal)))
        return [item for _, item in sorted(found, key=lambda one: one[0])]

    def duplicates(self) -> list[_Item]:
        """Return pairs of images that look alike and have different labels, the most similar first."""
        numbers, labels = self._labeled()
        if len(numbers) < 2:
            return []
        x = _unit(np.asarray(self.features.rows)[numbers])
        confirmed = {row for row, number in enumerate(numbers) if self.labeling.is_confirmed(number)}
        pairs: list[tuple[float, int, int]] = []
        for first in range(0, len(x), 512):
            cosines = x[first : first + 512] @ x.T
            for i, j in np.argwhere(cosines > DUPLICATE_COSINE).tolist():
                if first + i < j and set(labels[first + i]) != set(labels[j]) and not {first + i, j} <= confirmed:
                    pairs.append((float(cosines[i, j]), first + i, j))
        found: list[_Item] = []
        for cosine, i, j in sorted(pairs, key=lambda pair: -pair[0])[:_MOST_PAIRS]:
            given = " and ".join(_words(labels[row]) for row in (i, j))
            text = f"nearly the same image (cosine {cosine:.3f}): {given}"
            found.append(_Item([numbers[i], numbers[j]], text))
        return found

    def thin(self) -> list[_Item]:
        """Return the classes with few labels, each with the unlabeled images that are most like them."""
        numbers, labels = self._labeled(everything=True)
        counts = dict.fromkeys(self.labeling.store.classes, 0)
        for names in labels:
            for name in names:
                counts[name] += 1
        found: list[_Item] = []
        for name, count in sorted(counts.items(), key=lambda item: item[1]):
            if count >= FEW_LABELS:
                break
            images = [number for number, names in zip(numbers, labels) if name in names]
            text = f"{printable(name)}: {count} label{'s' * (count != 1)}"
            alike = self._unlabeled_like(images)
            found.append(_Item(alike, f"{text}; these look most like it" if alike else text, name=printable(name)))
        return found

    def newest(self) -> list[_Item]:
        """Return all answered images, the newest answer first."""
        answers = sorted(self.labeling.answers().items(), key=lambda item: item[1].time, reverse=True)
        said = {"skip": "skipped", "unsure": "not sure"}
        return [_Item([number], said.get(a.kind) or _words(a.labels)) for number, a in answers]

    def _labeled(self, everything: bool = False) -> tuple[list[int], list[tuple[str, ...]]]:
        """Return numbers and labels of the labeled images, of those with a feature unless `everything`."""
        answers = self.labeling.answers()
        found = [
            (number, answers[number].labels)
            for number in sorted(answers, key=lambda n: answers[n].time)
            if answers[number].kind == "label" and (everything or self.features.of(number) is not None)
        ]
        found = found if everything else found[-MOST:]
        return [number for number, _ in found], [labels for _, labels in found]

    def _questions(self, labels: Sequence[Sequence[str]]) -> list[tuple[str, np.ndarray, list[str]]]:
        """Return (title, class number of each image, names): one question or, with several labels, one a class."""
        classes = list(self.labeling.store.classes)
        if not self.labeling.store.multiple:
            return [("", np.array([classes.index(names[0]) for names in labels], np.int64), classes)]
        return [
            (f"{name}: ", np.array([int(name in names) for names in labels], np.int64), ["no", "yes"])
            for name in classes
        ]

    def _unlabeled_like(self, numbers: Sequence[int]) -> list[int]:
        """Return unlabeled images near the mean of some labeled ones; none of the sample that measures accuracy."""
        rows = [feature for number in numbers if (feature := self.features.of(number)) is not None]
        if not rows or self.features.rows is None:
            return []
        cosines = _cosines(self.features.rows, _unit(np.stack(rows)).mean(0))
        found: list[int] = []
        for row in np.argsort(-cosines, kind="stable").tolist():
            if len(found) == ALIKE or not np.isfinite(cosines[row]):
                break
            if not self.labeling.is_done(row) and not self.labeling.is_audit(row):
                found.append(row)
        return found


def _words(labels: Sequence[str]) -> str:
    return printable(", ".join(labels)) or "none of the classes"


def _unit(x: np.ndarray) -> np.ndarray:
    return np.asarray(x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12))


def _cosines(rows: np.ndarray, feature: np.ndarray) -> np.ndarray:
    """Return the cosine of each row with a feature, -inf for rows that are not there."""
    lengths = np.sqrt(np.einsum("ij,ij->i", rows, rows)) * float(np.linalg.norm(feature))
    cosines = rows @ feature / np.maximum(lengths, 1e-12)
    return np.where(np.isnan(cosines), -np.inf, cosines)
