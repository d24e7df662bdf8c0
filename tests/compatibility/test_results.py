"""Results, studies, packs and made folders of before the rooms were moved are read, verified or refused."""

import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lit_vision.cli.main import main
from lit_vision.results.schema import ResultError, read_result

ENDED, STOPPED = ("both", "turned"), ("half-done", "planned")


@pytest.fixture
def studies(files, tmp_path):
    """The folder with all studies."""
    for path in (files / "studies").glob("*.zip"):
        with zipfile.ZipFile(path) as archive:
            archive.extractall(tmp_path)
    return tmp_path / "studies"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ENDED)
def test_a_study_of_before_is_read_with_the_names_of_today(studies, name) -> None:
    stored = json.loads((studies / name / "results.json").read_text())
    result = read_result(studies / name / "results.json")
    assert result["schema"] == 2
    for cell, old in zip(result["cells"], stored["cells"], strict=True):
        assert cell["init"] == old["start"]
        assert "start" not in cell
        assert cell["values"] == old["values"]
    assert {cell["init"] for cell in result["cells"]} >= {"pixels", "scratch-cnn", "scratch-vit", "simclr"}


def test_a_result_of_a_later_schema_is_refused(here, tmp_path) -> None:
    stored = json.loads((here / "answers" / "mae-fit.json").read_text())
    (tmp_path / "results.json").write_text(json.dumps({"schema": 3, **stored}))
    with pytest.raises(ResultError, match="schema"):
        read_result(tmp_path / "results.json")


def test_runs_of_before_are_read(here) -> None:
    found = [read_result(path) for path in (here / "answers").glob("*-*.json")]
    assert len(found) == 7
    assert {result["metric"]["name"] for result in found} >= {"val/top1", "val/knn_top1", "val/map", "val/dice"}


@pytest.mark.parametrize("name", ENDED)
def test_a_study_of_before_makes_a_table(studies, name) -> None:
    from lit_vision.results.tables import comparison_table, rows_from, to_markdown

    rows = rows_from([studies / name / "results.json"])
    text = to_markdown(comparison_table(rows))
    assert "scratch-cnn" in text
    assert "finetune" in text


def tiny(preset):
    """The networks that make_files.py gave to the studies."""
    cnn = {"stem": "small", "stem_type": "deep", "stem_width": 4, "layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]}
    vit = {"img_size": preset.size, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2, "mlp_ratio": 1}
    return replace(preset, cnn=replace(preset.cnn, args=cnn), vit=replace(preset.vit, args=vit))


@pytest.mark.parametrize(("name", "count"), [("both", 28), ("turned", 11)])
def test_a_study_of_before_is_verified(here, studies, tmp_path, name, count) -> None:
    from lit_vision.study.images import read_images
    from lit_vision.study.presets import preset_for
    from lit_vision.study.verify import verify

    images = read_images("garments", 16)
    result = read_result(studies / name / "results.json")
    assert images.fingerprint == result["data_fingerprint"]
    weights = tmp_path / "weights"
    weights.mkdir()
    for path in [*(studies / name).glob("weights/*.safetensors"), *(studies / name).glob("cells/*.safetensors")]:
        path.rename(weights / path.name)
    checks = list(verify(result["cells"], images, tiny(preset_for(images.size)), weights))
    assert len(checks) == count
    assert all(check.holds for check in checks), [check for check in checks if not check.holds]


def test_the_model_of_a_study_of_before_answers(here, studies, tmp_path) -> None:
    from test_models import assert_same_answers, rows

    out = tmp_path / "study.csv"
    model = ["--model", str(studies / "both" / "model.safetensors"), "--device", "cpu"]
    assert main(["predict", *model, "garments/test", "--out", str(out)]) == 0
    assert_same_answers(rows(out), rows(here / "answers" / "study.csv"))


@pytest.mark.parametrize("name", [*STOPPED, *ENDED])
def test_a_study_of_before_is_not_continued_and_refused_in_one_line(here, studies, capsys, name) -> None:
    run, arguments = studies / name, ["--pretrained", "off", "--labels", "8", "--size", "16", "--budget", "1"]
    before = contents(run)
    assert main(["study", "garments", "--run_dir", str(run), *arguments]) == 1
    error = capsys.readouterr().err
    assert "--run_dir" in error
    assert str(run) in error
    assert error.count("\n") == 1
    assert contents(run) == before


def test_a_pack_of_before_is_the_folder(here) -> None:
    from lit_vision.data import ImageFolderDataModule

    packed, folder = (
        ImageFolderDataModule(root, img_size=32, train_view="train", batch_size=8, num_workers=0)
        for root in ("garments.pack", "garments")
    )
    assert packed.fingerprint == folder.fingerprint
    for one, other in zip(packed.train_dataloader(), folder.train_dataloader(), strict=True):
        np.testing.assert_array_equal(one["images"], other["images"])


def test_a_folder_made_before_is_known_as_made(here, files, tmp_path, capsys) -> None:
    image = next(Path("garments/train").glob("*/*.png"))
    out = tmp_path / "fashion"
    (out / "train" / "bag").mkdir(parents=True)
    (out / "train" / "bag" / "0.png").write_bytes(image.read_bytes())
    (out / "lit_vision_data.json").write_bytes((files / "fashion-turned.json").read_bytes())
    assert main(["data", "fashion", "--rotated", "--out", str(out)]) == 0
    assert len(list(out.rglob("*.png"))) == 1
    assert main(["data", "fashion", "--out", str(out)]) == 1  # another set
    assert str(out) in capsys.readouterr().err
