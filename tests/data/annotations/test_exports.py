"""Exports of annotation tools are read rightly or refused with what to do; doctor and the set-up of fit agree."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from toy_exports import CLASSES, EXPORTS, OBJECTS, class_mask

from lit_vision.cli.doctor import main as doctor
from lit_vision.data import AnnotatedDataModule
from lit_vision.errors import UserError


def _report(root: Path, out: Path) -> dict:
    code = doctor([str(root), "--out", str(out), "--workers", "1"])
    report = json.loads((out / "doctor.json").read_text())
    assert code == (0 if report["fit"] else 1)
    return report


def _module(root: Path, **settings) -> AnnotatedDataModule:
    return AnnotatedDataModule(str(root), img_size=64, batch_size=1, num_workers=0, train_view="fit", **settings)


@pytest.mark.parametrize("export", EXPORTS)
def test_export(export: str, tmp_path: Path, capsys) -> None:
    writer, annotation_format, refusal = EXPORTS[export]
    root = tmp_path / "set"
    root.mkdir()
    writer(root)
    report = _report(root, tmp_path / "out")
    printed = capsys.readouterr().out
    if refusal:
        assert not report["fit"]
        assert re.search(refusal, printed)
        with pytest.raises(UserError, match=refusal) as caught:
            _module(root, format=annotation_format).setup("fit")
        assert "\n" not in str(caught.value)
        return
    assert report["fit"], printed
    settings = report["settings"][annotation_format]
    hold_out = settings.pop("hold_out", 0)
    data = _module(root, **settings)
    table = data.table("train")
    assert [Path(path).stem for path in table.paths] == list(OBJECTS)
    if hold_out:  # no validation split: never the images that train
        with pytest.raises(UserError, match="hold_out"):
            data.table("val")
        assert len(_module(root, **settings, hold_out=hold_out).table("val")) == round(hold_out * 4)
    else:
        assert [Path(path).stem for path in data.table("val").paths] == ["b", "d"]
    batches = {int(batch["key"][0, 1]): batch for batch in data.train_dataloader()}
    if annotation_format == "masks":
        for i, name in enumerate(OBJECTS):
            assert (batches[i]["mask"][0, :48].numpy() == class_mask(name)).all()
            assert (batches[i]["mask"][0, 48:] == 255).all()
        return
    labels = [data.class_names.index(CLASSES[box[0]]) for boxes in OBJECTS.values() for box in boxes]
    assert table.labels.tolist() == labels
    np.testing.assert_allclose(table.boxes, [box[1:] for boxes in OBJECTS.values() for box in boxes], atol=1e-4)
    crowd = int(table.crowd.sum())
    assert crowd == (export == "CVAT: COCO 1.0")
    assert sum(len(batch["targets"][0]["boxes"]) for batch in batches.values()) == 6 - crowd
