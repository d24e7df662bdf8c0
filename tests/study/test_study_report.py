"""The report: nothing that came from a folder becomes markup, W&B gets the same, numbers can be measured again."""

import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from lit_vision.results.plots import Series, accuracy_against_labels
from lit_vision.results.tables import Table
from lit_vision.study.report_content import Answer, Content, Section, markdown, report_markdown
from lit_vision.study.report_html import to_html

HOSTILE = '<img src=x onerror="alert(1)">|`]('


def _content(picture: Path | None = None) -> Content:
    table = Table(["init", HOSTILE], [[HOSTILE, "not run yet"]], HOSTILE)
    sections = [Section(HOSTILE, HOSTILE, picture, table)]
    answers = [Answer(HOSTILE, HOSTILE, "better"), Answer(HOSTILE, HOSTILE, "less")]
    return Content(HOSTILE, HOSTILE, answers, picture, [HOSTILE], HOSTILE, table, sections, [HOSTILE], HOSTILE)


def test_html__is_one_file_without_script_or_link_and_escapes_what_came_from_outside(tmp_path) -> None:
    picture = accuracy_against_labels(tmp_path / "a.png", [Series("x", [1, 2], [0.1, 0.2])])
    page = to_html(_content(picture))
    assert "<img src=x" not in page
    assert "data:image/png;base64," in page
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")
    assert str(tmp_path) not in page


def test_markdown__is_inert(tmp_path) -> None:
    text = report_markdown(_content(), tmp_path)
    assert "<img" not in text
    assert markdown("a*b [c](d)") == "a\\*b \\[c\\](d)"


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study of two hostile class names with kept weights; W&B offline."""
    from lit_vision.cli.main import main

    root, rng = tmp_path_factory.mktemp("hostile"), np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 6)):
        for name in ("<b>bold", "plain|pipe"):
            (root / "data" / split / name).mkdir(parents=True)
            for i in range(count):
                image = rng.integers(0, 80, (16, 16, 3), np.uint8) + (120 if name[0] == "p" else 0)
                cv2.imwrite(str(root / "data" / split / name / f"{i}.png"), image.astype(np.uint8))
    arguments = [
        "study",
        str(root / "data"),
        "--run_dir",
        str(root / "run"),
        "--labels",
        "4",
        "--seeds",
        "2",
        "--inits",
        "simclr",
    ]
    arguments += ["--epochs", "simclr=1,4=1", "--keep_weights", "2", "--wandb", "tests"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("HF_HUB_OFFLINE", "1")
        assert main(arguments) == 0
    return root


def test_report__of_hostile_names_holds_no_markup_and_no_path(study) -> None:
    page, text = ((study / "run" / name).read_text() for name in ("report.html", "report.md"))
    assert "<b>bold" not in page
    assert str(study) not in page + text
    assert re.search(r"not tried: timm:\S+ \(no network", page)  # public weights, which cannot be had here


def test_report__goes_to_wandb_with_its_table_and_pictures(study) -> None:
    (kept,) = (study / "run" / "wandb").glob("offline-run-*")
    names = {path.name.split("_")[0] for path in (kept / "files" / "media").rglob("*.*")}
    assert {"accuracy", "cells"} <= names
    assert any("accuracy" in path.name for path in (kept / "files" / "media" / "images").rglob("*.png"))


def test_verify__measures_every_kept_number_again_and_sees_a_moved_one(study) -> None:
    from lit_vision.predict.api import load
    from lit_vision.study.images import read_images
    from lit_vision.study.presets import preset_for
    from lit_vision.study.verify import verify

    run, weights = study / "run", study / "weights"
    weights.mkdir()
    for path in [*run.glob("weights/*.safetensors"), *run.glob("cells/*.safetensors")]:
        shutil.copy(path, weights)
    cells = json.loads((run / "results.json").read_text())["cells"]
    images = read_images(study / "data")
    checks = list(verify(cells, images, preset_for(images.size), weights))
    assert len(checks) == sum(len(cell["values"]) for cell in cells)
    assert all(check.holds for check in checks)
    cells[0]["values"][0] += 0.3
    moved = cells[:1]
    assert [check.holds for check in verify(moved, images, preset_for(images.size), weights)].count(False) == 1
    embedding = load(weights / "simclr.safetensors", "cpu").metadata  # sees images as the study did
    assert (embedding.size, embedding.crop_pct) == (16, 1.0)
    (weights / "simclr.safetensors").unlink()
    frozen = [cell for cell in cells if (cell["init"], cell["protocol"]) == ("simclr", "linear")]
    assert frozen
    assert list(verify(frozen, images, preset_for(images.size), weights)) == []  # nothing to measure it with
