"""Parts of the report that need no training: the law of more labels, which model is stored, labels that look wrong."""

import csv
from types import SimpleNamespace

import numpy as np
import pytest

from lit_vision.results.schema import make_cell
from lit_vision.study.images import StudyImages
from lit_vision.study.metrics_of_cells import ACCURACY
from lit_vision.study.more_labels import more_labels, round_number
from lit_vision.study.report_sections import _label_errors, _other_metrics, model_keys
from lit_vision.study.verdict import verdicts

PUBLIC = "timm:lite0"


def _line(init: str, protocol: str, counts, **more) -> list[dict]:
    """Return cells of an error of 0.1 + 2 / sqrt(labels), five seeds that differ by 0.2 points."""
    spread = 0.002 * np.array([-1, 0.5, 0, -0.5, 1])
    return [
        make_cell(init, protocol, n, 0.9 - 2 * n**-0.5 + spread, seeds=[0, 1, 2, 3, 4], held_out=0.5, **more)
        for n in counts
    ]


def test_more_labels__finds_the_law_that_the_cells_were_made_from() -> None:
    cells = _line(PUBLIC, "linear", [50, 100, 200, 400, 800])
    found = more_labels(cells, cells[-1], ACCURACY)
    assert (found.labels, found.more) == (800, 800)
    error = found.law.predict(1600)
    assert error.low < 0.1 + 2 / 40 < error.high
    gain = 100 * (2 * 800**-0.5 - 2 * 1600**-0.5)
    low, high = found.law.gain(800, 800)[1:]
    assert low < gain < high
    assert found.sentence.startswith("About 800 more labels give ")
    assert PUBLIC in found.sentence


def test_more_labels__of_a_contender_at_two_counts_takes_the_best_frozen_one() -> None:
    cells = [*_line(PUBLIC, "linear", [50, 100, 200]), *_line(PUBLIC, "finetune", [50, 200])]
    tuned = cells[-1]
    assert more_labels(cells, tuned, ACCURACY).cell["protocol"] == "linear"
    assert more_labels(cells[2:], tuned, ACCURACY) is None


@pytest.mark.parametrize(("value", "rounded"), [(1, 1), (9, 9), (14, 10), (167, 200), (2624, 3000), (9600, 10000)])
def test_round_number(value: int, rounded: int) -> None:
    assert round_number(value) == rounded


def test_model__is_of_the_recommended_contender_or_the_next_that_is_a_network() -> None:
    cells = [
        make_cell("pixels", "logreg", 80, [0.9] * 3, seeds=[0, 1, 2], held_out=0.9),
        make_cell(PUBLIC, "linear", 80, [0.5] * 3, seeds=[0, 1, 2], held_out=0.5),
        make_cell(PUBLIC, "knn", 80, [0.6] * 3, seeds=[0, 1, 2], held_out=0.6),
        make_cell("scratch-cnn", "finetune", 80, [0.2] * 3, seeds=[0, 1, 2]),
    ]
    (verdict,) = verdicts(cells, 1000)
    assert verdict.recommended["init"] == "pixels"
    assert verdict.other["protocol"] == "knn"
    assert [(key.init, key.protocol) for key in model_keys(cells, verdict)][:1] == [(PUBLIC, "linear")]
    (verdict,) = verdicts(cells[1:], 1000)
    assert verdict.recommended["protocol"] == "knn"
    assert [key.protocol for key in model_keys(cells, verdict)][:1] == ["linear"]


def test_other_metrics__stand_in_the_report_if_all_cells_have_them() -> None:
    cell = make_cell("pixels", "knn", 8, [0.5, 0.7], balanced_values=[0.4, 0.4], macro_f1_values=[0.2, 0.4])
    table = _other_metrics([cell, make_cell("pixels", "knn", 4, [0.5])]).table
    assert table.columns[2:] == ["accuracy", "balanced accuracy", "macro F1"]
    assert table.rows == [["pixels", "knn", "60.0 ± 14.1 %", "40.0 ± 0.0 %", "30.0 ± 14.1 %"]]
    assert _other_metrics([make_cell("pixels", "knn", 4, [0.5])]) is None


def test_label_errors__planted_ones_come_first_in_the_csv(tmp_path) -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 40)
    features = rng.normal(size=(80, 4)).astype(np.float32) + 3 * labels[:, None]
    wrong = [5, 50]
    labels[wrong] = 1 - labels[wrong]
    labels, features = np.append(labels, 2), np.append(features, features[:1] - 9, 0)  # one image is alone in its class
    pool, paths = rng.integers(0, 255, (81, 8, 8, 3), np.uint8), [f"train/{i}.png" for i in range(81)]
    images = StudyImages(pool, labels, paths, pool[:0], labels[:0], [], ["cat", "=dog", "owl"], "", 8)
    study = SimpleNamespace(images=images, folder=tmp_path, encoders={PUBLIC: SimpleNamespace(pool=features)})
    section = _label_errors(study, [], None)
    rows = list(csv.DictReader((tmp_path / "label_errors.csv").open()))
    assert [row["path"] for row in rows[:2]] in (["train/5.png", "train/50.png"], ["train/50.png", "train/5.png"])
    assert {row["label"] for row in rows[:2]} == {"cat", "=dog"}
    assert "81 labels" in section.text
    assert "owl" not in [row["label"] for row in rows]
    assert section.picture.stat().st_size > 1000
