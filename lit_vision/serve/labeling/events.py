"""Events of a labeling, a line of JSON each in the store, and what an answer and the name of a class may be."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lit_vision.data.table_rows import PATH_COLUMNS, SPLIT_COLUMNS

KINDS = ("label", "skip", "unsure")
LONGEST_NAME = 100  # characters of a class's name
LONGEST_ID = 100  # characters of an answer's id, which the browser makes


class LabelingError(Exception):
    """A request that cannot be done: a name that is taken, an answer that another has replaced.

    Attributes:
        status: of the HTTP answer.
    """

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class LabelAnswer:
    """One answer to one image.

    Attributes:
        id: made by the browser; the same id twice is one answer.
        path: of the image, relative to the folder, with forward slashes.
        size: of the file, bytes.
        mtime_ns: of the file's last change; while it and `size` are the same, the file is not hashed again.
        blake2b: of the file's bytes, hex.
        kind: one of KINDS.
        labels: names of the classes that apply; empty unless `kind` is "label".
        annotator: who answered.
        time: ISO 8601, UTC.
        audit: True if the image belongs to the random sample that measures accuracy.
        predicted: {"labels", "confidence"} of the model before an audit image was answered; None for others, or
            without a model.
    """

    id: str
    path: str
    size: int
    mtime_ns: int
    blake2b: str
    kind: str
    labels: tuple[str, ...]
    annotator: str
    time: str
    audit: bool = False
    predicted: Mapping[str, Any] | None = None

    def shown(self) -> dict[str, Any]:
        """Return what a page gets of it."""
        return {
            "id": self.id,
            "kind": self.kind,
            "labels": list(self.labels),
            "annotator": self.annotator,
            "time": self.time,
        }


class AnswerConflictError(LabelingError):
    """An image got another answer than the one that the browser saw.

    Attributes:
        answer: the present one; None if it was taken back.
    """

    def __init__(self, answer: LabelAnswer | None) -> None:
        super().__init__("the image was answered elsewhere meanwhile", 409)
        self.answer = answer


def as_json(answer: LabelAnswer | None) -> Mapping[str, Any] | None:
    """Return an answer as the page gets it."""
    return answer.shown() if answer else None


# they join or part letters of Persian and Indian scripts, and emoji, and would be invisible between others
_JOINERS = re.compile("(?<=[^\x00-\x7f])[\u200c\u200d](?=[^\x00-\x7f])")


def check_class_name(name: object, multiple: bool = False) -> str:
    """Return a class's name without the spaces around it.

    Args:
        name: as it was typed.
        multiple: an image may have several labels: each class is then a column of labels.csv.

    Raises:
        LabelingError: it is empty, long, has characters that cannot be seen, or would be misread in labels.csv.
    """
    if not isinstance(name, str) or not (name := name.strip()):
        raise LabelingError("a class needs a name")
    if len(name) > LONGEST_NAME or not _JOINERS.sub("", name).isprintable():
        raise LabelingError(f"a class's name has at most {LONGEST_NAME} visible characters")
    if name.lower() == "nan" or (multiple and name.lower() in (*PATH_COLUMNS, *SPLIT_COLUMNS)):
        raise LabelingError(f"{name!r} has another meaning in a table of labels; choose another name")
    if multiple and {",", ";"} & set(name):  # either may separate columns
        raise LabelingError("with several labels an image, a class's name has no comma and no semicolon")
    return name


def now() -> str:
    """Return the time as ISO 8601 in UTC, to the millisecond."""
    seconds = time.time()
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{int(seconds % 1 * 1000):03d}Z"


_FIELDS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "open": {"root": str, "multiple": bool},
    "answer": {
        **dict.fromkeys(("id", "path", "blake2b", "kind", "annotator", "time"), str),
        **{"size": int, "mtime_ns": int, "labels": list, "audit": bool, "predicted": (dict, type(None))},
    },
    "undo": {"answer": str},
    "add_class": {"name": str},
    "rename_class": {"name": str, "to": str},
}


def parse_event(line: bytes) -> dict[str, Any]:
    """Return the event of a line; raises ValueError or KeyError if it is none."""
    event = json.loads(line)
    if not isinstance(event, dict) or event.get("event") not in _FIELDS:
        raise ValueError("it has no event that is known")
    for name, kind in _FIELDS[event["event"]].items():
        if not isinstance(event[name], kind):
            raise ValueError(f"{name} is {event[name]!r}")
    if event["event"] == "answer" and (event["kind"] not in KINDS or not _are_names(event["labels"])):
        raise ValueError("kind or labels")
    return event


def _are_names(values: Sequence[Any]) -> bool:
    return all(isinstance(value, str) for value in values)
