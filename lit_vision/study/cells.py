"""Results of one (init, protocol, labels, seed), stored one by one so that an interrupted study can be continued."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lit_vision.errors import UsageError, UserError
from lit_vision.io.atomic import atomic_write, write_json
from lit_vision.results.schema import SCHEMA, make_cell
from lit_vision.study.label_kinds import Scores, kind_of
from lit_vision.study.metrics_of_cells import ACCURACY, Metric

LOSSES = ".losses.json"  # end of the names of files with the losses of a training


def file_name(init: str) -> str:
    """Return the name of an init in names of files; "timm:hf-hub:owner/name" has characters that these cannot have."""
    return init.replace(":", "_").replace("/", "_")


@dataclass(frozen=True)
class CellKey:
    """Identity of one measurement; the seed is that of label subset, initialization and order."""

    init: str
    protocol: str
    labels: int
    seed: int

    @property
    def name(self) -> str:
        """The beginning of the names of its files."""
        return f"{file_name(self.init)}-{self.protocol}-{self.labels}-{self.seed}"


@dataclass(frozen=True)
class CellResult:
    """Result of one measurement; its (M, K) probabilities are stored in a file of their own.

    Attributes:
        key: init, protocol, labels and seed.
        value: accuracy on the test split (several labels an image: macro average precision), 0 to 1.
        seconds: of training and measuring.
        steps: of the training; 0 if no network was trained.
        chosen_on: data on which hyper-parameters were chosen.
        held_out: like `value`, in k-fold cross-validation inside the labels, if the protocol has one.
        balanced: mean accuracy over the classes of the test split, 0 to 1; None for several labels an image, as are
            the other balanced ones and `macro_f1`.
        macro_f1: mean F1 over its classes, 0 to 1.
        judged: like `value`, on half of the labels after training on the other half; None if that was not run.
        held_out_balanced: like `balanced`, in that cross-validation.
        judged_balanced: like `balanced`, on that half.
    """

    key: CellKey
    value: float
    seconds: float
    steps: int
    chosen_on: str
    held_out: float | None
    balanced: float | None = None
    macro_f1: float | None = None
    judged: float | None = None
    held_out_balanced: float | None = None
    judged_balanced: float | None = None


@dataclass(frozen=True)
class Measurement:
    """Output of a function that `measure_once` calls.

    Attributes:
        probabilities: (M, K) of the test split.
        steps, chosen_on: as in CellResult.
        held_out: scores in k-fold cross-validation inside the labels, if the protocol has one.
        judged: scores on half of the labels after training on the other half; None if that was not run.
        seconds: of the training; None: the time that the function took.
    """

    probabilities: np.ndarray
    steps: int = 0
    chosen_on: str = "fixed recipe"
    held_out: Scores | None = None
    seconds: float | None = None
    judged: Scores | None = None


def hash_inputs(*parts: Any) -> str:
    """Return a short hash of plain data, 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def read_record(path: Path) -> dict[str, Any]:
    """Return the JSON object of a study's file, or {} if it is missing, damaged or not of the current schema."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) and record.get("schema") == SCHEMA else {}


def refuse_older_study(folder: Path) -> None:
    """Raise an error if the folder holds the plan, weights or cells of a study of schema 1.

    Their hashes covered more than what each init uses, so nothing of them would be found again: the study would train
    anew and mix its files with the old ones.

    Raises:
        UserError: there is such a file.
    """
    for path in [folder / "plan.json", *sorted(folder.glob("weights/*.json")), *sorted(folder.glob("cells/*.json"))]:
        if path.name.endswith(LOSSES) or not path.is_file():
            continue
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue  # damaged: counts as missing
        if isinstance(record, dict) and record.get("schema") != SCHEMA:
            raise UserError(
                f"--run_dir {folder}: holds a study of an earlier version of lit-vision ({path.relative_to(folder)}), "
                "which can be read and verified but not continued; name another folder"
            )


class CellStore:
    """Results in a folder, each with a hash of all its inputs; a result with another hash counts as missing.

    Args:
        folder: created if missing.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, key: CellKey, inputs: str) -> CellResult | None:
        """Return the stored result, or None if there is none for these inputs."""
        record = read_record(self._file(key))
        if record.pop("inputs", None) != inputs or not self._array(key).exists():
            return None
        del record["schema"]
        record = {"value" if name == "top1" else name: value for name, value in record.items()}  # its earlier name
        return CellResult(CellKey(**record.pop("key")), **record)

    def put(self, result: CellResult, inputs: str, probabilities: np.ndarray, precision: Any = np.float16) -> None:
        """Store a result; its JSON file is written last, so that an interrupted write counts as missing.

        Args:
            result: of the cell.
            inputs: hash of all that it depends on.
            probabilities: (M, K).
            precision: that they are stored in.
        """
        self._file(result.key).unlink(missing_ok=True)
        atomic_write(self._array(result.key), lambda file: np.save(file, probabilities.astype(precision)))
        write_json(self._file(result.key), {"schema": SCHEMA, **asdict(result), "inputs": inputs})

    def put_losses(self, key: CellKey, losses: list[float]) -> None:
        """Store the loss of each step of a training."""
        write_json(self.folder / f"{key.name}{LOSSES}", [round(loss, 5) for loss in losses])

    def probabilities(self, key: CellKey) -> np.ndarray:
        """Return the (M, K) float32 class probabilities on the test split."""
        return np.asarray(np.load(self._array(key)), np.float32)

    def _file(self, key: CellKey) -> Path:
        return self.folder / f"{key.name}.json"

    def _array(self, key: CellKey) -> Path:
        return self.folder / f"{key.name}.npy"


def measure_once(
    store: CellStore, key: CellKey, inputs: str, test_labels: np.ndarray, measure: Callable[[], Measurement]
) -> CellResult:
    """Return the stored result of a cell; if there is none for these inputs, measure it and store it.

    Args:
        store: of the study or table.
        key: of the cell.
        inputs: hash of all that the measurement depends on.
        test_labels: (M,) true classes of the test split, or (M, K) with several labels an image.
        measure: trains or fits, and answers for the test split.
    """
    if (stored := store.get(key, inputs)) is not None:
        return stored
    begin = time.perf_counter()
    found = measure()
    seconds = time.perf_counter() - begin if found.seconds is None else found.seconds
    kind = kind_of(test_labels)
    scores = kind.score(found.probabilities, test_labels)
    held_out, judged = found.held_out, found.judged
    result = CellResult(
        key,
        scores.value,
        round(seconds, 3),
        found.steps,
        found.chosen_on,
        held_out.value if held_out else None,
        scores.balanced,
        scores.macro_f1,
        judged.value if judged else None,
        held_out.balanced if held_out else None,
        judged.balanced if judged else None,
    )
    store.put(result, inputs, found.probabilities, kind.precision)
    return result


def parse_labels(text: str, per_class: list[int], total: int | None = None) -> list[int]:
    """Return the numbers of labels of a list such as `1%,10%`, `200`, `5-shot` (images per class) or `all`.

    A number is at least one per class and at most all labels; duplicates are merged.

    Args:
        text: the list, separated by commas.
        per_class: labeled training images of each class.
        total: labeled training images if each may be of several classes; None: the sum of `per_class`.

    Raises:
        UsageError: an item is none of these, or counts images per class where each may be of several.
    """
    if total is not None and "-shot" in text:
        raise UsageError(f"--labels: {text!r} counts images per class, but images have several labels; give numbers")
    total, classes = sum(per_class) if total is None else total, len(per_class)
    counts = [_label_count(item.strip(), total, classes) for item in text.split(",")]
    return sorted({min(max(count, classes), total) for count in counts})


def notes_on_labels(text: str, classes: int, total: int) -> list[str]:
    """Return a sentence about the items of a list for `parse_labels` that became another number, or none.

    Args:
        text: the list, or "".
        classes: number of classes, the fewest labels.
        total: labeled training images, the most.
    """
    changed = []
    for item in dict.fromkeys(item.strip() for item in text.split(",") if text):
        count = _label_count(item, total, classes)
        if count < classes:
            changed.append(f"{item} became {classes} labels, as many as there are classes")
        elif count > total:
            changed.append(f"{item} became {total} labels, all that there are")
    return [f"--labels: {'; '.join(changed)}."] if changed else []


def check_label_syntax(text: str) -> None:
    """Refuse a list of labels that is wrong for any folder; an empty text is none.

    Raises:
        UsageError: as `parse_labels`.
    """
    if text:
        parse_labels(text, [10**9])  # of so many labels every share leaves some


def _label_count(item: str, total: int, classes: int) -> int:
    try:
        if item == "all":
            count = total
        elif item.endswith("%"):
            share = float(item[:-1]) / 100
            count = max(round(share * total), share > 0)  # 1 % of a small folder: one label, so one per class
        elif item.endswith("-shot"):
            count = int(item[:-5]) * classes
        else:
            count = int(item)
    except (ValueError, OverflowError):
        raise UsageError(f"--labels: {item!r} is not 1%, 200, 5-shot or all; separate them by commas") from None
    if count <= 0:
        raise UsageError(f"--labels: {item!r} leaves no label; give more than 0")
    return count


def to_cells(
    results: list[CellResult],
    pretrain_seconds: dict[str, float],
    multiply_adds: dict[tuple[str, str, int], int] | None = None,
    metric: Metric = ACCURACY,
) -> list[dict[str, Any]]:
    """Return results as the `cells` of results.json: one per (init, protocol, labels), values in order of the seeds.

    Args:
        results: of one study.
        pretrain_seconds: by init.
        multiply_adds: of one model, its pre-training included, by init, protocol and number of labels.
        metric: of the results' values.
    """
    groups: dict[tuple[str, str, int], list[CellResult]] = {}
    for result in sorted(results, key=lambda r: r.key.seed):
        groups.setdefault((result.key.init, result.key.protocol, result.key.labels), []).append(result)
    cells = []
    for (init, protocol, labels), group in groups.items():
        held_out = _all_or_none([r.held_out for r in group])
        further = {
            "balanced_values": _all_or_none([r.balanced for r in group]),
            "macro_f1_values": _all_or_none([r.macro_f1 for r in group]),
            "held_out_values": held_out,
            "judged_values": _all_or_none([r.judged for r in group]),
            "held_out_balanced_values": _all_or_none([r.held_out_balanced for r in group]),
            "judged_balanced_values": _all_or_none([r.judged_balanced for r in group]),
            "multiply_adds": (multiply_adds or {}).get((init, protocol, labels)),
            "metric": None if metric is ACCURACY else metric.name,
        }
        cells.append(
            make_cell(
                init,
                protocol,
                labels,
                [r.value for r in group],
                seconds=sum(r.seconds for r in group),
                pretrain_seconds=pretrain_seconds.get(init, 0.0),
                chosen_on=group[0].chosen_on,
                seeds=[r.key.seed for r in group],
                steps=group[0].steps,
                held_out=sum(held_out) / len(held_out) if held_out else None,
                **{name: value for name, value in further.items() if value is not None},
            )
        )
    return cells


def _all_or_none(values: list[float | None]) -> list[float] | None:
    known = [value for value in values if value is not None]
    return known if len(known) == len(values) else None
