"""The papers' tables: every number is the paper's, and every number of ours comes from a results file.

That their commands parse: test_recipes.py.
"""

import importlib
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from lit_vision.results.schema import read_result, write_result

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


sys.path.insert(0, str(EXPERIMENTS))
paper_rows, tables = importlib.import_module("paper_rows"), importlib.import_module("paper_tables")


def test_a_run_folder_means_one_run() -> None:
    commands: dict[str, str] = {}
    for table in paper_rows.TABLES.values():
        for row in table.rows:
            for stage in row.stages:
                assert commands.setdefault(stage.folder, stage.command) == stage.command
    names = [tables.result_path(name, row) for name, table in paper_rows.TABLES.items() for row in table.rows]
    assert len(set(names)) == len(names)


def test_the_mask_ratio_at_paper_scale_is_set_up_as_the_other_ablations() -> None:
    """0.75 is table-mae-ablation's default row, command for command; the others change nothing but the ratio."""
    commands = importlib.import_module("table_mae_mask_ratio").COMMANDS
    default = [command for row in paper_rows.TABLES["mae-ablation"].rows[:2] for command in row.commands]
    assert len(commands) == len(set(commands)) == 4 * 3
    assert set(default) <= set(commands)
    for ratio in (0.25, 0.5, 0.9):
        own = [c for c in commands if f"mask-ratio-{ratio}" in c]
        same = [c.replace(f" --model.mask_ratio {ratio}", "").replace(f"mask-ratio-{ratio}", "default") for c in own]
        assert same == list(dict.fromkeys(default))
    assert all(command.endswith("--resume auto") for command in commands)


def test_the_strengths_at_paper_scale_change_the_views_alone_and_resume() -> None:
    commands = importlib.import_module("table_simclr_augmentation").COMMANDS
    default = paper_rows.simclr.SIMCLR_LINEAR.rows[0].commands  # 100 epochs
    assert len(commands) == len(set(commands)) == 5 * 2
    assert set(default) <= set(commands)  # the recipe has strength 1 and blur: the same run
    for strength in (0.125, 0.25, 0.5, 1.0):
        own = [c for c in commands if f"_strength-{strength}" in c]
        changed = f" --data.strength {strength} --data.blur 0"
        assert [c.replace(changed, "").replace(f"_strength-{strength}", "") for c in own] == default
    assert all(command.endswith("--resume auto") for command in commands)


def test_batches_of_simclrs_table_have_the_stated_size() -> None:
    for size, (nodes, per_device, lr, _) in paper_rows.simclr.BATCHES.items():
        assert nodes * 8 * per_device == size
        assert lr == pytest.approx(0.075 * size**0.5, rel=1e-3)


@pytest.mark.parametrize("name", list(paper_rows.TABLES))
def test_dry_prints_commands_and_data_and_runs_nothing(name: str, monkeypatch, capsys) -> None:
    monkeypatch.setattr(tables, "subprocess", None)
    monkeypatch.setattr(sys, "argv", ["paper_tables.py", name, "--scale", "paper", "--dry"])
    assert tables.main() == 0
    output = capsys.readouterr().out
    assert "# data:" in output
    assert all(command in output for command in tables.commands(paper_rows.TABLES[name]))
    for stage in (stage for row in paper_rows.TABLES[name].rows for stage in row.stages):
        submission = f"experiments/cluster/slurm.sh {stage.file} {stage.folder}"
        assert f"#   sbatch --nodes={stage.nodes} {submission}" in output


def test_without_the_data_it_is_one_line(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    monkeypatch.setattr(tables, "subprocess", None)
    monkeypatch.setattr(sys, "argv", ["paper_tables.py", "mae-linear", "--scale", "paper"])
    assert tables.main() == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert "data/imagenet" in printed.err
    assert "DRY=1" in printed.err


def test_ours_comes_from_results_files_alone(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    table = paper_rows.TABLES["simclr-semi"]
    assert tables.show("simclr-semi", table).count("not run yet") == 6
    metric = {"name": "val/top1", "value": 0.5}
    kept = tables.result_path("simclr-semi", table.rows[0])
    write_result(kept, recipe="x", metric=metric, samples=50000, seconds=1.0, commit="0123456789", dirty=False)
    text = tables.show("simclr-semi", table)
    assert text.count("not run yet") == 5
    assert "50.0 % (1)" in text
    assert "+1.7" in text
    assert "01234567" in text


def test_the_gap_is_between_equal_measures(tmp_path: Path, monkeypatch) -> None:
    """The paper has mean per class on four sets; a fine-tuned result without it has no gap."""
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    table = paper_rows.TABLES["simclr-transfer"]

    def gaps(**metrics: float) -> dict[str, str]:
        for row in table.rows:
            linear = "--per_class" in row.last_command
            metric = {"name": "test/mean_per_class" if linear else "test/top1", "value": 0.4 if linear else 0.5}
            own, kept = {} if linear else {"metrics": metrics}, tables.result_path("simclr-transfer", row)
            write_result(kept, recipe="x", metric=metric, samples=9, seconds=1.0, commit="0123456789", **own)
        text = tables.show("simclr-transfer", table)
        cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in text.splitlines()]
        return {cell[0]: cell[4] for cell in cells if len(cell) == 7}

    both = gaps(**{"test/top1": 0.5, "test/mean_per_class": 0.4})
    assert (both["Food-101: fine-tune"], both["Pets: linear"], both["Pets: fine-tune"]) == ("-38.2", "-43.6", "-49.2")
    assert "-" not in [both[row.name] for row in table.rows]
    alone = gaps(**{"test/top1": 0.5})  # of a test before there was mean per class
    none = {name for name in (row.name for row in table.rows) if alone[name] == "-"}
    assert none == {f"{name}: fine-tune" for name in ("Aircraft", "Pets", "Caltech-101", "Flowers")}


def test_the_transfer_table_has_the_number_of_data_sets_in_its_title() -> None:
    texts = [(EXPERIMENTS / name).read_text() for name in ("README.md", "simclr/resnet50_transfer_finetune.yaml")]
    texts += [(EXPERIMENTS.parent / "Makefile").read_text(), paper_rows.TABLES["simclr-transfer"].title]
    assert len(paper_rows.simclr.TRANSFER) == 11
    assert all("eleven" in text for text in texts)


def test_what_is_run_is_copied_to_where_the_table_reads(tmp_path: Path, monkeypatch, capsys) -> None:
    ran = []

    def fake(command, cwd, check):
        ran.append(command[2])
        folder = Path(re.search(r"--run_dir (\S+)", command[2])[1])
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "results.json").write_text("{}")
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(tables, "ROOT", tmp_path)
    monkeypatch.setattr(tables, "RESULTS", tmp_path / "kept")
    monkeypatch.setattr(tables, "subprocess", SimpleNamespace(run=fake))
    for target in paper_rows.TABLES["simclr-semi"].data:
        (tmp_path / target).mkdir(parents=True)
    pretrained = {row.stages[0].folder: row.stages[0] for row in paper_rows.TABLES["simclr-semi"].rows}
    assert len(pretrained) == 3
    for count, (folder, stage) in enumerate(pretrained.items()):  # of several nodes: submitted one after the other
        assert stage.nodes == 4
        assert tables.run("simclr-semi", paper_rows.TABLES["simclr-semi"]) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert f"sbatch --nodes=4 experiments/cluster/slurm.sh {stage.file} {folder}" in error
        assert len({re.search(r"--run_dir (\S+)", command)[1] for command in ran}) == 2 * count
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "results.json").write_text("{}")
    ran.clear()
    assert tables.run("simclr-semi", paper_rows.TABLES["simclr-semi"]) == 0
    assert len(ran) == 6  # what was submitted is not started again
    assert all(" -m lit_vision fit " in command and command.endswith("--resume auto") for command in ran)
    assert len(list((tmp_path / "kept").rglob("*.json"))) == 6


def test_numbers_of_the_papers() -> None:
    """Copied from the papers' tables a second time, independently of the rows."""
    paper = {name: {row.name: row.paper for row in table.rows} for name, table in paper_rows.TABLES.items()}
    assert [v for k, v in paper["mae-finetune"].items() if "scratch" in k] == [0.823, 0.826, 0.831]
    assert [v for k, v in paper["mae-finetune"].items() if "1600 epochs, repository" in k] == [0.836, 0.859, 0.869]
    assert [v for k, v in paper["mae-linear"].items() if "1600" in k] == [0.680, 0.758, 0.766]
    tuned = [v for k, v in paper["mae-ablation"].items() if k.endswith("fine-tune")]
    linear = [v for k, v in paper["mae-ablation"].items() if k.endswith("linear")]
    assert tuned == [0.849, 0.848, 0.849, 0.849, 0.844, 0.849, 0.848, 0.844, 0.843, 0.854, 0.840]
    assert linear == [0.735, 0.655, 0.700, 0.719, 0.733, 0.691, 0.713, 0.731, 0.731, 0.739, 0.657]
    assert list(paper["simclr-linear"].values()) == [
        *(0.646, 0.665, 0.682, 0.689, 0.693),
        *(0.628, 0.638, 0.643, 0.647, 0.648),
        *(0.742, 0.765),
    ]
    assert list(paper["simclr-semi"].values()) == [0.483, 0.656, 0.585, 0.717, 0.630, 0.744]
    transfer = paper["simclr-transfer"]
    assert [transfer[k] for k in transfer if k.endswith("linear")] == [
        *(0.684, 0.906, 0.716, 0.374, 0.588, 0.503, 0.503, 0.745, 0.836, 0.903, 0.912)
    ]
    assert [transfer[k] for k in transfer if k.endswith("fine-tune")] == [
        *(0.882, 0.977, 0.859, 0.759, 0.635, 0.913, 0.881, 0.732, 0.892, 0.921, 0.970)
    ]


def test_transfer_by_a_linear_classifier(tmp_path: Path, capsys) -> None:
    from lit_vision.backbones.backbone import Backbone
    from lit_vision.weights.load import save_backbone

    rng = np.random.default_rng(0)
    for split, n in (("train", 8), ("val", 4), ("test", 6)):
        for k in range(3):
            target = tmp_path / "data" / split / f"class{k}"
            target.mkdir(parents=True)
            for i in range(n - (k == 2 and split == "test") * 3):  # classes of unequal size
                Image.fromarray(rng.integers(0, 60 * k + 60, (32, 32, 3), dtype=np.uint8)).save(target / f"{i}.png")
    sizes = {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16], "img_size": 32}
    torch.manual_seed(0)  # the features are those of a backbone as initialized
    save_backbone(tmp_path / "w.safetensors", Backbone("resnet18", **sizes), [0.0] * 3, [1.0] * 3)
    script = importlib.import_module("transfer_linear")
    assert script.STRENGTHS[0] == pytest.approx(1e-6)
    assert script.STRENGTHS[-1] == pytest.approx(1e5)
    assert len(script.STRENGTHS) == 45
    arguments = [str(tmp_path / "w.safetensors"), "--root", str(tmp_path / "data"), "--out", str(tmp_path / "r.json")]
    assert script.main([*arguments, "--per_class"], strengths=(0.01, 1.0)) == 0
    result = read_result(tmp_path / "r.json")
    assert result["metric"]["name"] == "test/mean_per_class"
    assert result["metric"]["value"] > 0.5
    assert (result["samples"], result["strength"] in (0.01, 1.0)) == (15, True)
    assert "validation split of 12" in json.dumps(result)
    assert script.main([str(tmp_path / "none"), *arguments[1:]]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_the_table_of_prompt_learning(tmp_path: Path, monkeypatch, capsys) -> None:
    from lit_vision.cli.few_shot import _parse_methods, _parse_shots, _parser

    coop = importlib.import_module("table_coop")
    assert len(coop.SETS) == len({one.folder for one in coop.SETS}) == 11
    for one in coop.SETS:  # every command parses
        arguments = _parser().parse_args(one.command.split()[2:])
        assert (_parse_shots(arguments.shots), arguments.seeds) == (list(coop.SHOTS), 3)
        assert _parse_methods(arguments.methods) == list(coop.METHODS)
    monkeypatch.setattr(sys, "argv", ["table_coop.py", "--scale", "paper", "--dry"])
    assert coop.main() == 0
    assert all(one.command in capsys.readouterr().out for one in coop.SETS[:1])
    monkeypatch.setattr(coop, "RESULTS", tmp_path)
    assert coop.table().count("not run yet") == 11 * 11
    rows = ["zero-shot,16,0,0.5", "coop,16,0,0.6", "coop,16,1,0.7"]
    (tmp_path / "dtd.csv").write_text("\n".join(["method,shots,seed,top1", *rows]))
    (line,) = [line for line in coop.table().splitlines() if line.startswith("| DTD")]
    assert [line.count(value) for value in ("50.0", "65.0", "41.5", "not run yet")] == [1, 1, 1, 9]
    monkeypatch.setattr(sys, "argv", ["table_coop.py", "--scale", "paper"])
    assert coop.main() == 1
    assert "data/coop/imagenet" in capsys.readouterr().err
