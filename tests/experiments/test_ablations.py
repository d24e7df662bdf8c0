"""The desk tables about masking and augmentation at toy size: run, stop, resume, publish, print, verify.

No accuracy is judged here.
"""

import importlib
import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from lit_vision.data.views.views import make_views

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
TABLES = ("table_mae_mask_ratio", "table_simclr_augmentation")


@pytest.fixture
def scripts(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    ablation = importlib.import_module("ablation")
    monkeypatch.setattr(ablation, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(ablation, "WEIGHTS", tmp_path / "weights")
    return ablation, {name: importlib.import_module(name).TABLE for name in TABLES}


def toy(table, *labels: str):
    """Two variants, two seeds, one epoch."""
    variants = tuple(one for one in table.variants if one.label in labels)
    columns = tuple(dict.fromkeys((protocol, 20 if protocol == "finetune" else 40) for protocol, _ in table.columns))
    return replace(table, variants=variants, columns=columns, seeds=2, epochs=1, tune_epochs=1)


def test_tables__every_variant_is_a_recipe_that_can_be_built(scripts) -> None:
    from lit_vision.study.training import PRETRAINING_METHODS

    for table in scripts[1].values():
        labels = [one.label for one in table.variants]
        assert len(set(labels)) == len(labels)
        assert {label for label, _ in table.published} <= set(labels)
        assert table.seeds >= 3
        presets = [table.preset(32, one) for one in table.variants]
        for preset in presets:
            make_views(table.init, 32, 0, **getattr(preset, f"{table.init}_views"))
            options = {key: value for key, value in getattr(preset, table.init).items() if key != "batch_size"}
            PRETRAINING_METHODS[table.init](
                preset.network(table.init).backbone, preset.network(table.init).args, **options
            )
        assert (
            len({json.dumps(preset.pretraining_fields(table.init), sort_keys=True) for preset in presets[1:]})
            == len(presets) - 1
        )


def test_tables__paper_scale_names_recipes_that_are_there(scripts, capsys, monkeypatch) -> None:
    ablation, tables = scripts
    for table in tables.values():
        monkeypatch.setattr(sys, "argv", ["table", "--scale", "paper", "--dry"])
        assert ablation.main(table) == 0
        printed = capsys.readouterr().out
        assert printed.startswith("not run yet")
        for line in printed.splitlines()[1:]:
            arguments = shlex.split(line)
            assert arguments[:3] == ["lit-vision", "fit", "--config"]
            assert (EXPERIMENTS.parent / arguments[3]).is_file()
        monkeypatch.setattr(sys, "argv", ["table", "--dry"])
        assert ablation.main(table) == 0
        assert f"trains {table.seeds} seeds of:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        (TABLES[0], ("untrained", "mask-0.5")),
        pytest.param(TABLES[1], ("strength-0.5", "strength-1.0-blur"), marks=pytest.mark.slow),
    ],
)
def test_table__runs_resumes_prints_and_verifies(scripts, images, tmp_path, capsys, monkeypatch, name, labels) -> None:
    ablation, tables = scripts
    table, folder = toy(tables[name], *labels), tmp_path / "run"
    from lit_vision.study import training

    trained, train = [], training.train

    def interrupted(module, data, epochs, seed, *rest, **more):
        if len(trained) == 2:
            raise KeyboardInterrupt
        trained.append(type(module).__name__)
        return train(module, data, epochs, seed, *rest, **more)

    monkeypatch.setattr(training, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ablation.make(table, images, folder)
    assert not ablation.results_file(table).exists()

    monkeypatch.setattr(training, "train", lambda *a, **more: trained.append(type(a[0]).__name__) or train(*a, **more))
    ablation.make(table, images, folder)
    pretrainings = 2 * sum(one.trained for one in table.variants)
    tunings = 2 * len(table.variants) * sum(protocol == "finetune" for protocol, _ in table.columns)
    assert len(trained) == pretrainings + tunings  # nothing twice, though it was stopped
    before = json.loads(ablation.results_file(table).read_text())
    ablation.make(table, images, folder)
    assert len(trained) == pretrainings + tunings
    after = json.loads(ablation.results_file(table).read_text())
    assert [cell["values"] for cell in before["cells"]] == [cell["values"] for cell in after["cells"]]
    assert {len(cell["values"]) for cell in after["cells"]} == {2}
    assert len(after["cells"]) == 2 * len(table.columns)

    capsys.readouterr()
    ablation.show(table)
    printed = capsys.readouterr().out
    assert all(f"| {label}" in printed for label in labels)
    assert "not run yet" in printed  # claims about variants that the toy leaves out

    assert ablation.verify(table, images) == 0
    assert (
        f"{2 * len(table.columns)} of {4 * len(table.columns)} values re-evaluated, 0 moved" in capsys.readouterr().out
    )
    after["cells"][0]["values"][0] = abs(after["cells"][0]["values"][0] - 0.5)
    values = after["cells"][0]["values"]
    after["cells"][0]["mean"] = sum(values) / 2
    after["cells"][0]["std"] = abs(values[0] - values[1]) / 2**0.5
    ablation.results_file(table).write_text(json.dumps(after))
    assert ablation.verify(table, images) == 1
    assert "MOVED" in capsys.readouterr().out


def test_verdict__claims_what_two_standard_errors_support(scripts) -> None:
    ablation, _ = scripts
    claim = ablation.Claim("High is better", "70 against 50", lambda values: (values["high"], values["low"]))
    expected = {
        (0.7, 0.71, 0.72): "confirmed at this scale (+20.0 points",
        (0.3, 0.31, 0.32): "the opposite at this scale (-20.0 points",
        (0.4, 0.51, 0.62): "neither confirmed nor contradicted",
        (0.9,): "too few seeds to say",
    }
    for high, text in expected.items():
        low = (0.5, 0.51, 0.52)[: len(high)]
        assert text in ablation.verdict(claim, {"high": high, "low": low})
    assert ablation.verdict(claim, {"high": (0.5,)}).endswith("not run yet.")
