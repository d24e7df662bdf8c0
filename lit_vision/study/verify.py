"""Measure a study's numbers again from its stored weights; only the probes on frozen features are fitted again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lit_vision.study.cells import CellKey
from lit_vision.study.encoders import frozen_features, measure_frozen
from lit_vision.study.images import StudyImages
from lit_vision.study.presets import ON_LABELS, StudyPreset
from lit_vision.study.runner import flat_pixels
from lit_vision.study.training import classification, load_classifier, probabilities

TOLERANCE = 0.005  # of accuracy as a fraction: half precision changes a few of a thousand answers
# A probe is fitted again. If strengths tie in cross-validation, the last bit of a feature decides: noise of 1e-7
# changed the accuracy at 80 labels between 0.616 and 0.624.
REFITTED = 0.01


def tolerance(protocol: str) -> float:
    """Return how far a number may differ from the stored one: more if its classifier is fitted again, not loaded."""
    return REFITTED if protocol in ("linear", "logreg") else TOLERANCE


@dataclass(frozen=True)
class Check:
    """Accuracy of one cell and seed, as stored and as measured again."""

    key: CellKey
    stored: float
    measured: float

    @property
    def holds(self) -> bool:
        """True if the difference is within the tolerance of the protocol."""
        return abs(self.stored - self.measured) <= tolerance(self.key.protocol)


def verify(cells: list[dict[str, Any]], images: StudyImages, preset: StudyPreset, weights: Path) -> Iterator[Check]:
    """Measure every number again whose weights are stored.

    Args:
        cells: from `read_result`.
        images: of the same folder.
        preset: of the study.
        weights: folder with `<init>.safetensors` (encoders) and `<cell>.safetensors` (classifiers).

    Yields:
        Check, one per number; numbers without weights are skipped.
    """
    frozen: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for cell in cells:
        for seed, value in zip(cell["seeds"], cell["values"]):
            key = CellKey(cell["init"], cell["protocol"], cell["labels"], seed)
            if key.protocol in ON_LABELS:
                path = weights / f"{key.name}.safetensors"
                if not path.exists():
                    continue
                rows = images.subset(key.labels, seed)
                module, _ = classification(key.init, images, rows, preset, seed, None, protocol=key.protocol)
                load_classifier(path, module)
                answer = probabilities(module, images, preset.side(key.init))
            else:
                path = weights / f"{key.init.replace(':', '_')}.safetensors"
                if key.init not in frozen:
                    if key.init == "pixels":
                        frozen[key.init] = flat_pixels(images)
                    elif path.exists():
                        frozen[key.init] = frozen_features(path, images, preset.side(key.init))
                    else:
                        continue
                answer = measure_frozen(key, *frozen[key.init], images).probabilities
            yield Check(key, value, float((answer.argmax(1) == images.test_labels).mean()))
