"""A study of images with several labels, and of groups: through the command line, and its parts by themselves."""

import csv
import re

import cv2
import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from lit_vision.cli.main import main
from lit_vision.data.labeled_folder import label_options
from lit_vision.errors import UserError
from lit_vision.results.schema import read_result
from lit_vision.study.cells import CellKey
from lit_vision.study.frozen import measure_frozen
from lit_vision.study.images import StudyImages, read_images
from lit_vision.study.label_kinds import OneLabel, SeveralLabels

COLORS = ("red", "green", "blue")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """60 images of 12 pixels with any of three stripes, blue a rare one; four images of each patient."""
    root, rng = tmp_path_factory.mktemp("stripes"), np.random.default_rng(0)
    with open(root / "labels.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", *COLORS, "patient"])
        for i in range(60):
            applies = rng.random(3) < [0.5, 0.4, 0.15]
            image = rng.integers(0, 150, (12, 12, 3))
            for k in np.flatnonzero(applies):
                image[4 * k : 4 * k + 4, :, k] += 80
            cv2.imwrite(str(root / f"{i:02}.png"), image.astype(np.uint8))
            labels = ["" if i % 15 == 4 else int(value) for value in applies]  # of four images nothing is known
            rows.writerow([f"{i:02}.png", *labels, f"patient {i // 4}"])
    return root / "labels.csv"


def test_study__of_several_labels_is_about_macro_average_precision(table, tmp_path, capsys) -> None:
    arguments = ["study", str(table.parent), "--label_file", str(table), "--label_columns", ",".join(COLORS)]
    arguments += ["--group_by", "patient", "--inits", "simclr", "--pretrained", "off", "--run_dir", str(tmp_path)]
    assert main([*arguments, "--labels", "5-shot"]) == 2
    assert "images have several labels" in capsys.readouterr().err
    assert main([*arguments, "--labels", "20", "--seeds", "1", "--epochs", "simclr=1,20=1"]) == 0
    result = read_result(tmp_path / "results.json")
    images = read_images(table.parent, labels=label_options(table, label_columns=COLORS, group_by="patient"))
    assert result["metric_name"] == "macro AP"
    protocols = {(cell["init"], cell["protocol"]) for cell in result["cells"]}
    assert protocols >= {("pixels", "logreg"), ("pixels", "knn"), ("simclr", "linear"), ("simclr", "finetune")}
    for cell in result["cells"]:
        assert cell["metric"] == "macro AP"
        for seed, value in zip(cell["seeds"], cell["values"]):
            name = CellKey(cell["init"], cell["protocol"], cell["labels"], seed).name
            answer, truth = np.load(tmp_path / "cells" / f"{name}.npy"), images.test_labels
            expected = np.mean([average_precision_score(truth[:, k], answer[:, k]) for k in range(3)])
            assert value == pytest.approx(expected)
    text = (tmp_path / "report.md").read_text()
    assert "of macro AP (95 %" in text
    assert "| blue" in text
    _the_model_answers_as_its_cell(table, tmp_path, text, images)


def _the_model_answers_as_its_cell(table, run, text, images) -> None:
    name = "-".join(re.search(r"([\w-]+), (finetune|linear), (\d+) labels, seed 0: test images", text).groups())
    out = run / "answers.csv"
    assert main(["predict", "--model", str(run / "model.safetensors"), str(table.parent), "--out", str(out)]) == 0
    found = {row["path"]: [float(row[color]) for color in COLORS] for row in csv.DictReader(out.open())}
    expected = np.load(run / "cells" / f"{name}-0.npy").astype(float)
    np.testing.assert_allclose([found[path] for path in images.test_paths], expected, atol=0.01)


def test_read_images__holds_out_its_share_of_each_label(table) -> None:
    images = read_images(table.parent, labels=label_options(table, label_columns=COLORS))
    test, everything = (images.test_labels == 1).sum(0), (images.test_labels == 1).sum(0) + images.per_class
    assert (np.abs(test - everything / 4) <= 1).all()
    assert images.labeled + len(images.test_labels) == 56
    assert np.isnan(images.labels[images.labeled :]).all()  # what is not known can only be pre-trained on


def test_read_images__refuses_a_test_split_that_no_label_applies_to(table) -> None:
    lines = table.read_text().splitlines()
    text = [f"{lines[0]},split", *(f"{line},train" for line in lines[1:41])]
    text += [f"{line.split(',')[0]},0,0,0,,test" for line in lines[41:]]
    (table.parent / "split.csv").write_text("\n".join(text))
    with pytest.raises(UserError, match="no class applies"):
        read_images(table.parent, labels=label_options(table.parent / "split.csv", label_columns=COLORS))


def test_subset_of_several_labels__is_random_nested_and_has_each_label() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random((200, 4)) < [0.5, 0.2, 0.02, 0.01]).astype(np.float32)
    labels[:3, 3], labels[150:] = 1, np.nan
    for seed in range(5):
        few, many = (set(SeveralLabels.sample(labels, count, seed)) for count in (6, 60))
        assert few < many < set(range(150))
        assert (labels[list(few)] == 1).any(0).all()
    rest = np.array([labels[SeveralLabels.sample(labels, 60, seed), 0].mean() for seed in range(50)])
    assert rest.mean() == pytest.approx(labels[:150, 0].mean(), abs=0.03)


@pytest.mark.parametrize("kind", [OneLabel, SeveralLabels])
def test_halves__keep_groups_together(kind) -> None:
    groups, labels = np.arange(40) // 4, np.arange(40) % 3
    labels = labels if kind is OneLabel else (labels[:, None] == np.arange(3)).astype(np.float32)
    fit, judge = kind.halve(labels, 0, groups)
    assert not set(groups[fit]) & set(groups[judge])
    assert sorted([*fit, *judge]) == list(range(40))
    assert kind.halve(labels, 0, np.zeros(40)) is None


def test_measure_frozen__of_groups_that_look_alike_does_not_know_them() -> None:
    rng = np.random.default_rng(0)
    groups = np.arange(48) // 4
    labels = groups * 5 % 12 % 3
    features = (0.1 * rng.normal(size=(48, 8)) + rng.normal(size=(12, 8))[groups]).astype(np.float32)
    none = np.zeros((48, 8, 8, 1), np.uint8)
    images = StudyImages(none, labels, [""] * 48, none, labels, [""] * 48, list("abc"), "", 8)
    for protocol in ("knn", "linear"):
        alike = measure_frozen(CellKey("", protocol, 48, 0), features, features, images)
        images.groups = groups.astype(str)
        apart = measure_frozen(CellKey("", protocol, 48, 0), features, features, images)
        images.groups = None
        assert alike.held_out.value > 0.95 > 0.8 > apart.held_out.value
        assert alike.judged.value > 0.8 > 0.7 > apart.judged.value
