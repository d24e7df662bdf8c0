"""Tables made from results files alone; a value that no file holds is printed as "not run yet".

A table is a list of rows, one per result or study cell; columns are looked up by name. Percent with one decimal; ± is
the sample standard deviation over seeds.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lit_vision.evaluation.metrics import format_percent, mean_sd, paired_difference
from lit_vision.results.schema import NO_FRACTIONS, read_results, summarize

NOT_RUN = "not run yet"
BASELINES = ("pixels", "scratch-")  # beginnings of the names of inits that use no pre-trained weights
Row = dict[str, Any]


@dataclass(frozen=True)
class Table:
    """Column titles in order, rows of texts, and `note`, a line under the table."""

    columns: list[str]
    rows: list[list[str]] = field(default_factory=list)
    note: str = ""


@dataclass(frozen=True)
class Published:
    """Published values for a row: the paper's fraction, and peers as text with their source."""

    paper: float | None = None
    peers: str = ""


def rows_from(locations: Iterable[str | os.PathLike[str]]) -> list[Row]:
    """Return the results at these locations as flat rows: one for a run, one for each cell of a study.

    Args:
        locations: results files, or folders of them; one that does not exist gives no rows.

    Returns:
        Rows with init, protocol, labels, values, seconds, pretrain_seconds, chosen_on (a run: its recipe, "" and its
        one value), and recipe, commit, dirty, data_fingerprint, metric, file.

    Raises:
        ResultError: a file is not a valid result.
    """
    rows = []
    for path, result in (found for location in locations for found in read_results(location)):
        common = {key: result[key] for key in ("recipe", "commit", "dirty", "data_fingerprint", "weights_sha256")}
        common["file"] = path.name
        if "cells" in result:
            rows += [common | {"metric": result.get("metric_name", "top1")} | cell for cell in result["cells"]]
        else:
            metric = result["metric"]
            one = {"init": result["recipe"], "protocol": "", "labels": None, "values": [metric["value"]]}
            one |= {"seconds": result["seconds"], "pretrain_seconds": 0.0, "chosen_on": "", "metric": metric["name"]}
            rows.append(common | one)
    return rows


def score(row: Row | None) -> str:
    """Format mean ± sd of a row's values with the number of seeds, "61.2 ± 1.4 % (5)"; "not run yet" without values.

    A loss, or CIDEr-D, is not a fraction: it is printed with its metric's name, "val/loss 0.512 (1)".
    """
    summary = summarize(row["values"]) if row else None
    if row is None or summary is None:
        return NOT_RUN
    if row["metric"].endswith(NO_FRACTIONS):
        spread = "" if summary.sd is None else f" ± {summary.sd:.3f}"
        return f"{row['metric']} {summary.mean:.3f}{spread} ({summary.n})"
    return f"{format_percent(summary.mean, summary.sd)} ({summary.n})"


def commits(row: Row | None) -> str:
    """Return the short commit of a row, with a + when files differed from it; "-" if it is unknown."""
    if not row or not row["commit"]:
        return "-"
    return f"{row['commit'][:8]}{'+' if row['dirty'] else ''}"


def _labels_text(row: Row) -> str:
    return "-" if row["labels"] is None else str(row["labels"])


def grid_table(rows: Sequence[Row], lines: Sequence[tuple[str, str]], labels: Sequence[int], note: str = "") -> Table:
    """Return the few-label table: one line per (init, protocol), one column per number of labels.

    Args:
        rows: from rows_from; of several with the same init, protocol and labels the last is printed.
        lines: (init, protocol) in the order of the table; pairs that no row holds are "not run yet".
        labels: numbers of labeled images.
        note: a line under the table.
    """
    cells = {(row["init"], row["protocol"], row["labels"]): row for row in rows}
    body = [[init, protocol, *(score(cells.get((init, protocol, n))) for n in labels)] for init, protocol in lines]
    return Table(["init", "protocol", *(f"{n} labels" for n in labels)], body, note)


def comparison_table(
    rows: Sequence[Row], note: str = "", published: Mapping[tuple[str, str, int | None], Published] | None = None
) -> Table:
    """Return a table that compares each row with published values and with the best baseline at as many labels.

    Columns: init, protocol, labels, paper, peers (with source), ours, gap, recipe, commit. The gap is to the paper's
    number where there is one, else to the baseline with the highest mean (paired seeds, ± standard error), in points.

    Args:
        rows: from rows_from.
        note: a line under the table.
        published: by (init, protocol, labels).
    """
    columns = ["init", "protocol", "labels", "paper", "peers (source)", "ours", "gap", "recipe", "commit"]
    best: dict[Any, Row] = {}  # by number of labels
    for row in rows:
        if row["values"] and str(row["init"]).startswith(BASELINES):
            known = best.get(row["labels"])
            if known is None or mean_sd(row["values"])[0] > mean_sd(known["values"])[0]:
                best[row["labels"]] = row
    body = []
    for row in rows:
        found = (published or {}).get((row["init"], row["protocol"], row["labels"]), Published())
        paper = "-" if found.paper is None else f"{100 * found.paper:.1f} %"
        cells = [str(row["init"]), row["protocol"] or "-", _labels_text(row)]
        cells += [paper, found.peers or "-", score(row), _format_difference(row, found.paper, best.get(row["labels"]))]
        body.append([*cells, str(row["recipe"]), commits(row)])
    return Table(columns, body or [[NOT_RUN] + [""] * (len(columns) - 1)], note)


def _format_difference(row: Row, paper: float | None, baseline: Row | None) -> str:
    if not row["values"]:
        return "-"
    if paper is not None:
        return f"{100 * (mean_sd(row['values'])[0] - paper):+.1f}"
    if baseline is None or baseline is row:
        return "best baseline" if baseline is row else "-"
    pairs = min(len(row["values"]), len(baseline["values"]))
    difference = paired_difference(row["values"][:pairs], baseline["values"][:pairs])
    spread = "" if difference.se is None else f" ± {100 * difference.se:.1f}"
    return f"{100 * difference.mean:+.1f}{spread}"


def to_markdown(table: Table) -> str:
    """Return the table as GitHub Markdown with aligned columns; pipes and line breaks in cells are escaped."""
    clean = [[_escape(cell) for cell in row] for row in [table.columns, *table.rows]]
    widths = [max(3, *(len(row[i]) for row in clean)) for i in range(len(table.columns))]
    lines = ["| " + " | ".join(f"{cell:<{width}}" for cell, width in zip(row, widths)) + " |" for row in clean]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines) + "\n" + (f"\n{_escape(table.note)}\n" if table.note else "")


def _escape(cell: str) -> str:
    cell = " ".join(cell.split()).replace("\\", "\\\\").replace("|", "\\|")
    return cell.replace("<", "&lt;").replace(">", "&gt;")  # a class or recipe name must not become HTML


def to_csv(table: Table) -> str:
    """Return the table as comma-separated text with a header and without the note."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([table.columns, *table.rows])
    return text.getvalue()


def to_png(table: Table, path: str | os.PathLike[str], title: str = "") -> Path:
    """Draw the table as a PNG file and return its path."""
    from lit_vision.results.plots import draw_table

    return draw_table(path, table.columns, table.rows, title=title, note=table.note)
