"""experiments/table_elpv.py on a made-up package of small photographs with a tiny stand-in for the public network."""

import importlib
import io
import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lit_vision.backbones.backbone import Backbone
from lit_vision.study import training
from lit_vision.study.progress import Reporter
from lit_vision.study.training_data import StudyData

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))
table = importlib.import_module("table_elpv")
images, rows, runs = (importlib.import_module(f"studies.elpv_{name}") for name in ("images", "rows", "runs"))
SIDE = 32
TINY = ("resnet10t", {})


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch) -> Path:
    """A package of 40 functional, 8 and 8 uncertain and 24 defective cells, which have a bright corner."""
    rng, path = np.random.default_rng(0), tmp_path / "elpv.whl"
    lines = []
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("elpv.dist-info/licenses/LICENSE.md", "for non-commercial use")
        for i, probability in enumerate([0.0] * 40 + [1 / 3] * 8 + [2 / 3] * 8 + [1.0] * 24):
            pixels = rng.integers(0, 100, (40, 40), dtype=np.uint8)
            pixels[:20, :20] += np.uint8(150 * (probability > 0.5))
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "png")
            archive.writestr(f"{images.FOLDER}images/{i}.png", file.getvalue())
            lines.append(f"images/{i}.png  {probability}  {'mono' if i % 2 else 'poly'}")
        archive.writestr(f"{images.FOLDER}labels.csv", "\n".join(lines) + "\n")
    monkeypatch.setattr(images, "SHA256", images.sha256_of_file(path))
    return path


def test_both_protocols_share_a_stratified_split_and_no_test_cell_is_trained_on(wheel: Path) -> None:
    cells = images.read_cells(wheel)
    certain, paper = (images.make_protocol(cells, name) for name in ("certain", "paper"))
    assert set(certain.pool) == set(paper.pool)
    assert set(certain.test) < set(paper.test)
    assert not set(paper.pool) & set(paper.test)
    assert len(paper.test) == 20
    strata = zip(cells.probabilities[paper.test], np.array(cells.kinds)[paper.test])
    counts = np.unique([f"{p:.2f} {k}" for p, k in strata], return_counts=True)[1]
    assert counts.tolist() == [5, 5, 1, 1, 1, 1, 3, 3]  # a quarter of 20, 20, 4, 4, 4, 4, 12, 12
    assert set(cells.probabilities[certain.pool[certain.labels >= 0]]) == {0.0, 1.0}
    weights = dict(zip(cells.probabilities[paper.pool], paper.copies / 3))
    assert weights == {0.0: 1.0, 1 / 3: 1 / 3, 2 / 3: 2 / 3, 1.0: 1.0}
    assert (paper.labels == (cells.probabilities[paper.pool] > 0)).all()


def test_networks_that_train_cost_at_most_100_million_multiply_adds() -> None:
    for row in {row.network: row for row in rows.ROWS}.values():
        cost = rows.count_costs(row)
        assert 40 < cost.forward <= 100
    # the first convolution of the stem alone: 3 x 3 x 3 weights, 16 channels, 48 x 48 positions
    assert cost.forward > 3 * 3 * 3 * 16 * 48 * 48 / 1e6


@pytest.fixture
def small(monkeypatch) -> None:
    """Make everything tiny; the public network is a random ResNet-10."""
    for name, value in {"SIZE": SIDE, "PUBLIC_SIZE": 40, "PIXELS_SIZE": 16}.items():
        monkeypatch.setattr(rows, name, value)
    vit = ("vit_tiny_patch16_224", {"img_size": SIDE, "embed_dim": 24, "depth": 1, "num_heads": 1})
    monkeypatch.setattr(rows, "NETWORKS", {"cnn": TINY, "vit": vit, "public": TINY})
    pretrained = [rows.Row(one.init, one.network, (2, 2, 2), min(1, one.pretrain_epochs), 32) for one in rows.ROWS]
    monkeypatch.setattr(rows, "ROWS", (pretrained[0], pretrained[3], pretrained[4]))
    monkeypatch.setattr(rows, "PUBLIC", "timm:resnet10t")
    monkeypatch.setattr(rows, "public_backbone", lambda: Backbone(*TINY[:1]))
    monkeypatch.setattr(rows, "label_counts", lambda labels: (8, 16, int((labels >= 0).sum())))
    monkeypatch.setattr(runs, "SEEDS", (2, 1, 1))


def test_batch_norm_of_the_public_network_keeps_its_statistics_in_training(wheel: Path, tmp_path: Path, small) -> None:
    with Reporter() as reporter:
        runner = runs.Runner(images.read_cells(wheel), tmp_path / "run", reporter)
    study = runner.images("certain")
    module = rows.classifier(rows.ROWS[0], runner.encoder(rows.ROWS[0]).weights, None, 0)
    before = {name: value.clone() for name, value in module.backbone.state_dict().items()}
    training.train(module, StudyData(study, np.arange(8), "train", rows.TRAIN_VIEWS, 8, 0), 2, 0)
    moved = {name for name, value in module.backbone.state_dict().items() if not torch.equal(value, before[name])}
    assert moved
    assert not [name for name in moved if "running" in name or "num_batches" in name]


@pytest.mark.slow  # about 40 trainings of two steps
def test_a_stopped_run_continues_and_its_results_hold_numbers_only(
    wheel: Path, tmp_path: Path, small, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(table, "RESULTS", tmp_path / "results")
    cells, folder = images.read_cells(wheel), tmp_path / "run"
    table.make(cells, folder, 0)  # no time: nothing is begun
    assert json.loads((tmp_path / "results" / "elpv.json").read_text())["cells"] == []
    table.make(cells, folder, 60)
    first = json.loads((tmp_path / "results" / "elpv.json").read_text())
    by_key = {(cell["init"], cell["protocol"], cell["labels"]): cell for cell in first["cells"]}
    assert {key[2] for key in by_key} == {8, 16, 48}
    assert all(len(cell["values"]) == (2 if key[2] == 8 else 1) for key, cell in by_key.items())
    assert by_key["timm:tf_efficientnet_lite0", "linear", 8]["held_out_values"]
    tuned = by_key["timm:tf_efficientnet_lite0", "finetune", 16]
    cost = rows.count_costs(rows.ROWS[0])
    assert tuned["multiply_adds"] == pytest.approx(1e6 * tuned["steps"] * 16 * 3 * cost.forward, rel=1e-6)
    assert by_key["mae", "linear", 8]["pretrain_multiply_adds"] > 0
    assert table.verify(cells) == 0
    assert "0 moved" in capsys.readouterr().out

    monkeypatch.setattr(training, "train", lambda *args, **kwargs: pytest.fail("trained again"))
    table.make(cells, folder, 0)
    assert json.loads((tmp_path / "results" / "elpv.json").read_text())["cells"] == first["cells"]
    table.show()
    text = (tmp_path / "results" / "elpv.md").read_text()
    assert "nan" not in text
    assert "With 48 labels: " in text
    assert "88.42 %" in text
    assert {path.suffix for path in (tmp_path / "results").iterdir()} == {".json", ".md"}


@pytest.mark.parametrize(
    ("arguments", "code", "named"), [([], 2, "--accept_license"), (["--archive", "no.whl"], 1, "pip")]
)
def test_without_the_license_accepted_or_without_the_package_nothing_is_made(
    arguments: list[str], code: int, named: str, wheel: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(table, "make", lambda *args: pytest.fail("made"))
    monkeypatch.setattr(table, "print_plan", lambda *args: None)
    monkeypatch.setattr(sys, "argv", ["table_elpv.py", "--archive", str(wheel), *arguments])
    assert table.main() == code
    output = capsys.readouterr()
    assert named in output.err
    assert output.err.count("\n") == 1
    assert code == 1 or "for non-commercial use" in output.out
