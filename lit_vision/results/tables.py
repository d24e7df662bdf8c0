"""Tables made from results files and nothing else: what no file holds is "not run yet".

A table is a list of rows, one per result or study cell; columns are looked up by name. Percent with one decimal, ± is the
sample standard deviation over seeds.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lit_vision.evaluation.metrics import format_percent, paired_difference
from lit_vision.results.schema import read_results, summarize

NOT_RUN = "not run yet"
BASELINES = ("pixels", "scratch-")  # starts that use no pre-trained weights
Row = dict[str, Any]


@dataclass(frozen=True)
class Table:
    """Columns (header texts, in order) and rows of texts; `note` is a line under the table."""

    columns: list[str]
    rows: list[list[str]] = field(default_factory=list)
    note: str = ""


@dataclass(frozen=True)
class Published:
    """What others report for a row: the paper's fraction, and peers as text with their source."""

    paper: float | None = None
    peers: str = ""


def rows_from(places: Iterable[str | os.PathLike]) -> list[Row]:
    """Every result at these places as flat rows, a study's cells one each.

    Args:
        places: results files, or folders of them; one that does not exist gives no rows.

    Returns:
        Rows with start, protocol, labels, values, seconds, pretrain_seconds, chosen_on (a run: its recipe, "" and its
        one value), and recipe, commit, dirty, data_fingerprint, metric, file.

    Raises:
        ResultError: a file is there but is not a valid result.
    """
    rows = []
    for path, result in (found for place in places for found in read_results(place)):
        common = {key: result[key] for key in ("recipe", "commit", "dirty", "data_fingerprint", "weights_sha256")}
        common["file"] = path.name
        if "cells" in result:
            rows += [common | {"metric": result.get("metric_name", "top1")} | cell for cell in result["cells"]]
        else:
            metric = result["metric"]
            one = {"start": result["recipe"], "protocol": "", "labels": None, "values": [metric["value"]]}
            one |= {"seconds": result["seconds"], "pretrain_seconds": 0.0, "chosen_on": "", "metric": metric["name"]}
            rows.append(common | one)
    return rows


def score(row: Row | None) -> str:
    """Mean ± sd of a row's values with the number of seeds, "61.2 ± 1.4 % (5)"; "not run yet" without any.

    A loss is no fraction: it is printed with its metric's name, "val/loss 0.512 (1)".
    """
    summary = summarize(row["values"]) if row else None
    if summary and row["metric"].endswith("loss"):
        spread = "" if summary.sd is None else f" ± {summary.sd:.3f}"
        return f"{row['metric']} {summary.mean:.3f}{spread} ({summary.n})"
    return NOT_RUN if summary is None else f"{format_percent(summary.mean, summary.sd)} ({summary.n})"


def commits(row: Row | None) -> str:
    """Short commit, with a + when files differed from it; "-" if none is known."""
    if not row or not row["commit"]:
        return "-"
    return row["commit"][:8] + ("+" if row["dirty"] else "")


COLUMNS: dict[str, Callable[[Row], str]] = {
    "start": lambda row: str(row["start"]),
    "protocol": lambda row: row["protocol"] or "-",
    "labels": lambda row: "-" if row["labels"] is None else str(row["labels"]),
    "result (seeds)": score,
    "seconds": lambda row: f"{row['seconds']:.0f}",
    "pre-training seconds": lambda row: f"{row['pretrain_seconds']:.0f}",
    "chosen on": lambda row: row["chosen_on"] or "-",
    "recipe": lambda row: str(row["recipe"]),
    "commit": commits,
}


def list_table(rows: Sequence[Row], columns: Sequence[str] = tuple(COLUMNS), note: str = "") -> Table:
    """One line per row, in the order given.

    Args:
        rows: from rows_from.
        columns: names out of COLUMNS.
        note: a line under the table.
    """
    body = [[COLUMNS[name](row) for name in columns] for row in rows]
    return Table(list(columns), body or [[NOT_RUN] + [""] * (len(columns) - 1)], note)


def grid_table(rows: Sequence[Row], lines: Sequence[tuple[str, str]], labels: Sequence[int], note: str = "") -> Table:
    """The few-label table: one line per (start, protocol), one column per number of labels.

    Args:
        rows: from rows_from; of several with one start, protocol and labels the last counts.
        lines: (start, protocol) in the order wanted; pairs that no row holds are "not run yet".
        labels: numbers of labelled images.
        note: a line under the table.
    """
    cells = {(row["start"], row["protocol"], row["labels"]): row for row in rows}
    body = [[init, protocol, *(score(cells.get((init, protocol, n))) for n in labels)] for init, protocol in lines]
    return Table(["start", "protocol", *(f"{n} labels" for n in labels)], body, note)


def comparison_table(rows: Sequence[Row], note: str = "", published: Mapping[tuple, Published] | None = None) -> Table:
    """One line per row against what others published and against the best baseline of the same number of labels.

    Columns: start, protocol, labels, paper, peers (with source), ours, gap, recipe, commit. The gap is to the paper's number where
    there is one, else to the baseline with the highest mean (paired seeds, ± standard error), in points.

    Args:
        rows: from rows_from.
        note: a line under the table.
        published: by (start, protocol, labels).
    """
    columns = ["start", "protocol", "labels", "paper", "peers (source)", "ours", "gap", "recipe", "commit"]
    best: dict[Any, Row] = {}
    for row in rows:
        if row["values"] and str(row["start"]).startswith(BASELINES):
            held = best.get(row["labels"])
            if held is None or summarize(row["values"]).mean > summarize(held["values"]).mean:
                best[row["labels"]] = row
    body = []
    for row in rows:
        found = (published or {}).get((row["start"], row["protocol"], row["labels"]), Published())
        paper = "-" if found.paper is None else f"{100 * found.paper:.1f} %"
        cells = [COLUMNS[name](row) for name in ("start", "protocol", "labels")]
        cells += [paper, found.peers or "-", score(row), _format_difference(row, found.paper, best.get(row["labels"]))]
        body.append([*cells, COLUMNS["recipe"](row), commits(row)])
    return Table(columns, body or [[NOT_RUN] + [""] * (len(columns) - 1)], note)


def _format_difference(row: Row, paper: float | None, baseline: Row | None) -> str:
    if not row["values"]:
        return "-"
    if paper is not None:
        return f"{100 * (summarize(row['values']).mean - paper):+.1f}"
    if baseline is None or baseline is row:
        return "best baseline" if baseline is row else "-"
    pairs = min(len(row["values"]), len(baseline["values"]))
    difference = paired_difference(row["values"][:pairs], baseline["values"][:pairs])
    spread = "" if difference.se is None else f" ± {100 * difference.se:.1f}"
    return f"{100 * difference.mean:+.1f}{spread}"


def to_markdown(table: Table) -> str:
    """GitHub Markdown with aligned columns; pipes and line breaks in cells are escaped."""
    clean = [[_escape(cell) for cell in row] for row in [table.columns, *table.rows]]
    widths = [max(3, *(len(row[i]) for row in clean)) for i in range(len(table.columns))]
    lines = ["| " + " | ".join(f"{cell:<{width}}" for cell, width in zip(row, widths)) + " |" for row in clean]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines) + "\n" + (f"\n{_escape(table.note)}\n" if table.note else "")


def _escape(cell: str) -> str:
    cell = " ".join(cell.split()).replace("\\", "\\\\").replace("|", "\\|")
    return cell.replace("<", "&lt;").replace(">", "&gt;")  # a class or recipe name must not become HTML


def to_csv(table: Table) -> str:
    """Comma-separated text with a header; the note is left out."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([table.columns, *table.rows])
    return text.getvalue()


def to_png(table: Table, path: str | os.PathLike, title: str = "") -> Path:
    """Draw the table; the file's path is returned."""
    from lit_vision.results.plots import draw_table

    return draw_table(path, table.columns, table.rows, title=title, note=table.note)
