"""Measure a study's numbers again from its weights: nothing is trained but the probes on frozen features."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lit_vision.evaluation.knn import weighted_knn
from lit_vision.evaluation.linear import logistic_regression
from lit_vision.study.cells import CellKey
from lit_vision.study.images import StudyImages
from lit_vision.study.presets import ON_LABELS, StudyPreset
from lit_vision.study.runner import flat_pixels
from lit_vision.study.training import classification, features, load_classifier, probabilities
from lit_vision.weights.load import load_backbone

TOLERANCE = 0.005  # of a fraction: half precision moves a few of a thousand answers
# A probe is fitted again. Where cross-validation ties, the last bit of a feature chooses the strength: noise of 1e-7 moved one at 80
# labels between 0.616 and 0.624.
REFITTED = 0.01


def tolerance(protocol: str) -> float:
    """How far a number may lie from the one that stands: more where a protocol's classifier is fitted again, not loaded."""
    return REFITTED if protocol in ("linear", "logreg") else TOLERANCE


@dataclass(frozen=True)
class Check:
    """One number, as it stands and as it was measured again."""

    key: CellKey
    stands: float
    measured: float

    @property
    def holds(self) -> bool:
        """Within its protocol's tolerance."""
        return abs(self.stands - self.measured) <= tolerance(self.key.protocol)


def verify(cells: list[dict[str, Any]], images: StudyImages, preset: StudyPreset, weights: Path) -> Iterator[Check]:
    """Every number whose weights are at hand, one by one.

    Args:
        cells: of results.json.
        images: of the same folder.
        preset: the same.
        weights: folder with `<start>.safetensors` (encoders) and `<cell>.safetensors` (classifiers).

    Yields:
        Check. Numbers without weights are passed over; count them.
    """
    frozen: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for cell in cells:
        for seed, value in zip(cell["seeds"], cell["values"]):
            key = CellKey(cell["init"], cell["protocol"], cell["labels"], seed)
            rows = images.subset(key.labels, key.seed)
            if key.protocol in ON_LABELS:
                path = weights / f"{key.name}.safetensors"
                if not path.exists():
                    continue
                module, _ = classification(key.init, images, rows, preset, seed, None, protocol=key.protocol)
                load_classifier(path, module)
                answer = probabilities(module, images, preset.side(key.init))
            else:
                path = weights / f"{key.init.replace(':', '_')}.safetensors"
                if key.init not in frozen:
                    if key.init == "pixels":
                        frozen[key.init] = flat_pixels(images)
                    elif path.exists():
                        backbone, report = load_backbone(path)
                        frozen[key.init] = features(backbone, report.mean, report.std, images, preset.side(key.init))
                    else:
                        continue
                pool, test = frozen[key.init]
                known, classes = (pool[rows], images.labels[rows]), len(images.classes)
                if key.protocol == "knn":
                    answer = weighted_knn(*known, test, classes).numpy()
                else:
                    answer = logistic_regression(*known, test, classes, seed=seed).probabilities
            yield Check(key, value, float((answer.argmax(1) == images.test_labels).mean()))
