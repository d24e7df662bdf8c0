"""Table and page of table_scenes.py, made from its results alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lit_vision.evaluation.metrics import format_percent, paired_difference
from lit_vision.results.plots import Series, training_curves
from lit_vision.results.schema import summarize
from lit_vision.results.tables import NOT_RUN, Table, commits, to_markdown

# task: (title, metric as printed, its key, the value to reach, keys of further metrics)
TASKS = {
    "detect": ("detection", "mAP@[.5:.95]", "map", 0.45, ("map50", "map75")),
    "segment": ("segmentation", "mean Dice, ten garments", "dice", 0.85, ("miou", "pixel_accuracy")),
}
INITS = {"scratch": "from scratch", "simclr": "SimCLR on the training scenes' tiles"}
COLUMNS = [
    "task",
    "init",
    "measure",
    "test, mean ± sd (seeds)",
    "gap ± standard error",
    "also",
    "minutes",
    "pre-training minutes",
    "commit",
]


def values(results: dict[Any, dict], task: str, init: str, metric: str) -> dict[int, float]:
    """Return {seed: value} of one metric on the test split."""
    return {
        run.seed: result["metrics"][f"test/{metric}"]
        for run, result in results.items()
        if (run.task, run.init) == (task, init)
    }


def gap(results: dict[Any, dict], task: str) -> Any:
    """Return the paired difference of pre-trained minus scratch over the seeds that both have; None without any."""
    metric = TASKS[task][2]
    ours, theirs = (values(results, task, init, metric) for init in ("simclr", "scratch"))
    both = sorted(ours.keys() & theirs.keys())
    return paired_difference([ours[s] for s in both], [theirs[s] for s in both]) if both else None


def make_table(results: dict[Any, dict]) -> Table:
    """Return the table: a row per task and initialization."""
    rows = []
    for task, (title, shown, metric, _, others) in TASKS.items():
        for init, name in INITS.items():
            found = [result for run, result in results.items() if (run.task, run.init) == (task, init)]
            summary = summarize(values(results, task, init, metric).values())
            if summary is None:
                rows.append([title, name, shown, NOT_RUN, *[""] * 5])
                continue
            also = []
            for other in others:
                mean = summarize(values(results, task, init, other).values()).mean
                also.append(f"{other} {100 * mean:.1f} %")
            difference = gap(results, task) if init != "scratch" else None
            gap_text = "-" if difference is None else f"{100 * difference.mean:+.1f}"
            if difference is not None and difference.se is not None:
                gap_text += f" ± {100 * difference.se:.1f}"
            minutes = summarize([r["trained"]["seconds"] / 60 for r in found]).mean
            before = summarize([r["pretrain_seconds"] / 60 for r in found]).mean
            rows.append(
                [
                    title,
                    name,
                    shown,
                    f"{format_percent(summary.mean, summary.sd)} ({summary.n})",
                    gap_text,
                    ", ".join(also),
                    f"{minutes:.1f}",
                    f"{before:.1f}" if before else "-",
                    commits(found[0]),
                ]
            )
    note = (
        "Gap: to the same seeds from scratch, in points. Same network, schedule and augmentation; the pre-training is "
        "shared by all runs."
    )
    return Table(COLUMNS, rows, note)


def sentences(results: dict[Any, dict]) -> list[str]:
    """Return the conclusions from the table, a line per task."""
    lines = []
    for task, (title, shown, metric, aim, _) in TASKS.items():
        best = [(summarize(v.values()).mean, INITS[s]) for s in INITS if (v := values(results, task, s, metric))]
        if not best:
            continue
        mean, name = max(best)
        reached = "reached" if mean >= aim else f"missed by {100 * (aim - mean):.1f} points"
        line = f"- {title}: best {shown} {100 * mean:.1f} % ({name}); the aim of {100 * aim:.0f} % is {reached}."
        difference = gap(results, task)
        if difference is None:
            line += " The initializations cannot be compared yet."
        elif difference.se is None:
            line += f" Pre-training moves it by {100 * difference.mean:+.1f} points on one seed, which says little."
        elif abs(difference.mean) <= 2 * difference.se:
            line += (
                f" Pre-training makes no difference that {difference.n} seeds can show"
                f" ({100 * difference.mean:+.1f} ± {100 * difference.se:.1f})."
            )
        else:
            verb = "helps" if difference.mean > 0 else "harms"
            line += (
                f" Pre-training {verb}: {100 * difference.mean:+.1f} ± {100 * difference.se:.1f} points"
                f" over {difference.n} seeds."
            )
        lines.append(line)
    return lines


def int8_lines(results: dict[Any, dict]) -> list[str]:
    """Return the Markdown section on int8 exports, empty without any."""
    rows = []
    for run, result in results.items():
        if found := result.get("int8"):
            lost = 100 * (found["before"] - found["after"])
            values = (f"{100 * found[key]:.1f} %" for key in ("before", "after"))
            rows.append(
                [TASKS[run.task][0], INITS[run.init], found["metric"], *values, f"{lost:+.1f}", found["format"]]
            )
    if not rows:
        return []
    columns = ["task", "start (seed 0)", "measure", "float32", "int8", "points lost", "format"]
    return [
        "## int8 after training\n",
        to_markdown(Table(columns, rows, "Test scenes; calibrated on at most 300 training scenes.")),
    ]


def write_page(results: dict[Any, dict], table: Table, out: Path) -> None:
    """Write scenes.md with table, sentences, curves and example images to the folder `out`."""
    parts = ["# Detection and segmentation on the scenes\n", to_markdown(table), *sentences(results), ""]
    parts += int8_lines(results)
    for task, (title, shown, metric, *_) in TASKS.items():
        series = [
            Series(
                f"{run.init} {run.seed}",
                *zip(*result["curve"]),
                baseline=run.init == "scratch",
                group=INITS[run.init],
            )
            for run, result in results.items()
            if run.task == task and result.get("curve")
        ]
        if not series:
            continue
        file = f"scenes-{task}-curves.png"
        training_curves(out / file, series, f"{title.capitalize()}, validation, a line per seed", shown, "epoch")
        parts += [f"## {title.capitalize()}: validation {metric} over the epochs\n", f"![curves]({file})\n"]
        for init, name in INITS.items():
            if (out / f"scenes-{task}-{init}.png").exists():
                parts += [
                    f"{name} (seed 0), validation scenes: above the truth, below what the model says.\n",
                    f"![{name}](scenes-{task}-{init}.png)\n",
                ]
    (out / "scenes.md").write_text("\n".join(parts), encoding="utf-8")
