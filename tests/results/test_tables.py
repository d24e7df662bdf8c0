"""Tables: every number from a results file, and "not run yet" where there is none."""

import csv
import io

import pytest
from PIL import Image

from lit_vision.results import tables
from lit_vision.results.schema import ResultError, make_cell, write_result
from lit_vision.results.tables import (
    NOT_RUN,
    comparison_table,
    grid_table,
    rows_from,
    score,
    to_csv,
    to_markdown,
    to_png,
)


@pytest.fixture
def rows(tmp_path):
    cells = [make_cell("mae", "linear", 80, [0.5, 0.6, 0.7]), make_cell("pixels", "logreg", 80, [0.25])]
    cells.append(make_cell("simclr", "linear", 80, []))
    write_result(tmp_path / "few.json", recipe="study", seconds=1.0, cells=cells, commit="0123456789abcdef", dirty=True)
    metric = {"name": "top1", "value": 0.915}
    write_result(tmp_path / "run.json", recipe="debug/a|b<i>", seconds=9.0, metric=metric, samples=10, commit=None)
    return rows_from([tmp_path])


def test_grid_holds_only_what_was_run(rows):
    lines = [("mae", "linear"), ("pixels", "logreg"), ("simclr", "linear"), ("timm:x", "linear")]
    table = grid_table(rows, lines, [80, 800])
    assert table.columns == ["init", "protocol", "80 labels", "800 labels"]
    assert [row[2] for row in table.rows] == ["60.0 ± 10.0 % (3)", "25.0 % (1)", NOT_RUN, NOT_RUN]
    assert {row[3] for row in table.rows} == {NOT_RUN}


def test_comparison_names_recipe_and_commit(rows):
    table = comparison_table(rows)
    wanted = [table.columns.index(name) for name in ("recipe", "commit", "ours", "labels")]
    assert [table.rows[0][i] for i in wanted] == ["study", "01234567+", "60.0 ± 10.0 % (3)", "80"]
    assert [table.rows[-1][i] for i in wanted] == ["debug/a|b<i>", "-", "91.5 % (1)", "-"]


def test_markdown_is_escaped_and_csv_is_parsed_back(rows):
    table = comparison_table(rows, note="a note")
    text = to_markdown(table)
    assert "debug/a\\|b&lt;i&gt;" in text
    assert len({line.replace("\\|", "").count("|") for line in text.splitlines() if line.startswith("|")}) == 1
    assert text.endswith("a note\n")
    assert list(csv.reader(io.StringIO(to_csv(table)))) == [table.columns, *table.rows]


def test_png(rows, tmp_path):
    with Image.open(to_png(comparison_table(rows), tmp_path / "t.png", "title")) as image:
        assert image.width > 600


def test_a_table_without_rows_is_not_run_yet(tmp_path):
    assert rows_from([tmp_path / "none"]) == []
    assert NOT_RUN in to_markdown(comparison_table([]))


def test_a_broken_results_file_is_never_skipped(tmp_path):
    (tmp_path / "few.json").write_text("{}")
    with pytest.raises(ResultError, match=r"few\.json"):
        rows_from([tmp_path])


def test_a_loss_is_not_a_percentage(tmp_path):
    metric = {"name": "val/loss", "value": 1.8}
    write_result(tmp_path / "mae.json", recipe="debug/mae", seconds=9.0, metric=metric, samples=10)
    (row,) = rows_from([tmp_path])
    assert score(row) == "val/loss 1.800 (1)"


def test_comparison_table__gap_is_to_the_paper_or_to_the_best_baseline_over_paired_seeds() -> None:
    common = {
        "recipe": "r",
        "commit": "0123456789",
        "dirty": False,
        "metric": "top1",
        "protocol": "finetune",
        "labels": 80,
    }
    rows = [
        {**common, "init": "pixels", "values": [0.2, 0.2, 0.2]},
        {**common, "init": "scratch-cnn", "values": [0.40, 0.42, 0.44]},
        {**common, "init": "simclr", "values": [0.50, 0.54, 0.52]},
    ]
    table = tables.comparison_table(rows, published={("pixels", "finetune", 80): tables.Published(0.25, "22 % (peer)")})
    gap = [row[table.columns.index("gap")] for row in table.rows]
    assert gap[:2] == ["-5.0", "best baseline"]
    assert gap[2] == "+10.0 ± 1.2"  # differences 10, 12, 8: sd 2, over the root of 3
    assert table.rows[0][3:5] == ["25.0 %", "22 % (peer)"]
