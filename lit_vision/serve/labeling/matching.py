"""Find the images that stored answers belong to: by path, else by content, where a file was moved or has changed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from lit_vision.io.processes import cores
from lit_vision.serve.labeling.events import LabelAnswer
from lit_vision.serve.labeling.images import ImageReadError, LabelImages
from lit_vision.serve.labeling.store import LabelStore


@dataclass
class MatchedAnswers:
    """Answers of the images that are there.

    Attributes:
        histories: ids of the answers of each image by its number, the oldest first, without those taken back.
        moved: images whose answer was given at another path.
        changed: files with other content than was answered: they are asked again.
        missing: answered files that are nowhere below the folder; the store keeps their answers.
    """

    histories: dict[int, list[str]] = field(default_factory=dict)
    moved: int = 0
    changed: int = 0
    missing: int = 0


def match_answers(store: LabelStore, images: LabelImages) -> MatchedAnswers:
    """Match the store's answers with files; those of the same size and time as answered are not read.

    Files of the same content that were answered at their own paths keep their own answers.
    """
    at_path: dict[str, dict[str, list[LabelAnswer]]] = {}  # path: digest: answers
    for answer in store.answers.values():
        if not store.is_undone(answer.id):
            at_path.setdefault(answer.path, {}).setdefault(answer.blake2b, []).append(answer)
    numbers = {path: number for number, path in enumerate(images.paths)}
    found = MatchedAnswers()

    here = [path for path in at_path if path in numbers]
    last = [[answers[-1] for answers in at_path[path].values()] for path in here]
    for path, digest in zip(here, _digests(images, [numbers[path] for path in here], last)):
        if digest in at_path[path]:
            found.histories[numbers[path]] = [answer.id for answer in at_path[path].pop(digest)]
        else:
            found.changed += 1

    left: dict[str, list[LabelAnswer]] = {}  # digest: answers
    for contents in at_path.values():
        for digest, answers in contents.items():
            left.setdefault(digest, []).extend(answers)
    sizes = {answers[-1].size for answers in left.values()}
    free = [number for number in range(len(images)) if sizes and number not in found.histories]
    alike = [number for number in free if _size(images, number) in sizes]
    for number, digest in zip(alike, _digests(images, alike, [[] for _ in alike])):
        if digest in left:
            found.histories[number] = [answer.id for answer in left.pop(digest)]
            found.moved += 1
    found.missing = len({a.path for answers in left.values() for a in answers if a.path not in numbers})
    return found


def _digests(images: LabelImages, numbers: Sequence[int], known: Sequence[Sequence[LabelAnswer]]) -> list[str]:
    """Return the digests of files, "" for one that cannot be read; see `_digest`."""
    with ThreadPoolExecutor(cores()) as threads:
        return list(threads.map(lambda number, answers: _digest(images, number, answers), numbers, known))


def _digest(images: LabelImages, number: int, known: Sequence[LabelAnswer]) -> str:
    """Return the digest of a file, without reading it if it has the size and time of a known answer to it."""
    try:
        state = os.stat(images.root / images.paths[number])
        for answer in known:
            if (state.st_size, state.st_mtime_ns) == (answer.size, answer.mtime_ns):
                return answer.blake2b
        return images.read(number)[1].blake2b
    except (OSError, ImageReadError):
        return ""


def _size(images: LabelImages, number: int) -> int:
    try:
        return os.stat(images.root / images.paths[number]).st_size
    except OSError:
        return -1
