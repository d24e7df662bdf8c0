"""The tables of pictures and words as Markdown, from the committed results only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from table_script import RESULTS

from studies.words_sets import SETS

PHOTOGRAPHS = RESULTS / "words-photographs.json"
SPLITS = {"concept": "no concept on both sides", "picture": "pictures drawn at random"}
TITLES = {
    "pixels": "raw pixels",
    "lite0-96": "Lite0, 96 px",
    "lite0": "Lite0, 224 px",
    "scratch-cnn": "small CNN, 96 px",
    "simclr": "small CNN of SimCLR, 96 px",
}
TO_BEAT = ("lite0", "ridge")
TRAINED = (  # rows of words_rows.ROWS, which are not imported to print
    ("lite0", "frozen"),
    ("lite0-96", "frozen"),
    ("lite0", "locked, own text tower"),
    ("lite0", "locked, MiniLM trained"),
    ("lite0-96", "trained"),
    ("scratch-cnn", "trained"),
    ("simclr", "trained"),
)
NOTES = """\
Pictures: raw pixels at 32 x 32; the public EfficientNet-Lite0 (ImageNet-1k, 75.1 %), frozen unless its row says
trained; a small residual network from scratch, or pre-trained by SimCLR on the training pictures of each split. Words:
all-MiniLM-L6-v2, frozen unless the row says otherwise. `ridge` and `neighbors` train no network. The other rows train
`ImageText` with CLIP's loss: `frozen` trains the two projections on both frozen towers; `locked` keeps the image tower
and trains a text tower, one of our own from scratch or MiniLM; `trained` trains the image tower and the projections.
Lite0 and MiniLM begin to train from the projections of the frozen row. Strengths of the baselines and lengths of the
frozen rows are chosen on the validation pictures of each split; the learning rate of the frozen rows was tried on those
of the first split of the emoji, and nothing else was tuned. The other trainings are as short as the time of a busy core
asked for (16 to 100 steps, some on fewer splits): a row that trains a tower and loses here might win with more.
"""


def results_file(name: str) -> Path:
    """Return the path of a set's committed results."""
    return RESULTS / f"words-{name}.json"


def show() -> None:
    """Print the tables from the committed results and write them as Markdown."""
    from lit_vision.results.schema import read_result

    text = ["# Pictures and words\n", NOTES]
    for name in SETS:
        text.append(f"## {name}\n")
        text += set_tables(read_result(results_file(name))) if results_file(name).exists() else ["not run yet\n"]
    text.append("## From drawings to photographs\n")
    text += photograph_tables(read_result(PHOTOGRAPHS)) if PHOTOGRAPHS.exists() else ["not run yet\n"]
    print("\n".join(text))
    (RESULTS / "words.md").write_text("\n".join(text), encoding="utf-8")


def set_tables(result: dict[str, Any]) -> list[str]:
    """Return the recalls of each row, and what they gain over ridge regression, as Markdown."""
    from lit_vision.evaluation.metrics import format_percent
    from lit_vision.results.tables import Table, to_markdown

    metrics = list(dict.fromkeys(cell["metric"] for cell in result["cells"]))
    lines: dict[tuple[str, str, str], dict[str, dict[str, Any]]] = {}
    for cell in result["cells"]:
        lines.setdefault((cell["split"], cell["init"], cell["protocol"]), {})[cell["metric"]] = cell
    ordered = sorted(lines, key=lambda line: list(SPLITS).index(line[0]))
    body, gains = [], []
    for key in ordered:
        split, init, protocol = key
        cells = [lines[key][metric] for metric in metrics]
        values = [format_percent(cell["mean"], cell["std"]).removesuffix(" %") for cell in cells]
        body.append([SPLITS[split], TITLES[init], protocol, str(len(cells[0]["values"])), *values, *_costs(cells[0])])
        if protocol not in ("ridge", "neighbors"):
            against = lines[(split, *TO_BEAT)]
            found = [gain(lines[key][metric], against[metric], result["test_images"]) for metric in metrics]
            gains.append([SPLITS[split], TITLES[init], protocol, *found, verdict(lines[key], against)])
    sizes = result["test_images"]
    note = (
        f"Recall, %, mean ± standard deviation of the splits; {min(sizes)} to {max(sizes)} test pictures where whole "
        "concepts are held out. Each caption is a candidate and a query of its own; a picture has found its words if "
        "one of its captions is among the first. Multiply-adds, in 10^12, of one training (pre-training + training), "
        "counted as three forward passes of what trains; seconds of the processor, one core shared with other programs."
    )
    columns = ["split", "pictures", "method", "splits", *metrics, "10^12 multiply-adds", "seconds"]
    gain_note = (
        f"Gain over ridge regression from {TITLES[TO_BEAT[0]]}, in points, paired by split, with its 95 % interval "
        "(Student's t). The target is a gain of R@1, the mean of both directions, above two standard errors."
    )
    gain_columns = ["split", "pictures", "method", *metrics, "target"]
    tables = [to_markdown(Table(columns, body, note)), to_markdown(Table(gain_columns, gains, gain_note))]
    found = []
    for answer in ("met", "missed", "too few splits"):
        named = [f"{line[1]}, {line[2]} ({line[0]})" for line in gains if line[-1].startswith(answer)]
        found.append(f"- Target, {answer}: {'; '.join(named) or 'no row'}.\n")
    without = [f"{TITLES[init]}, {protocol}" for init, protocol in TRAINED if ("concept", init, protocol) not in lines]
    if without:
        found.append(f"- Not run yet: {'; '.join(without)}.\n")
    return [*tables, "".join(found)]


def _costs(cell: dict[str, Any]) -> list[str]:
    """Return the multiply-adds and the seconds of one training."""
    if "multiply_adds" not in cell:
        return ["-", "-"]
    count = len(cell["values"])
    train, pretrain = sum(cell["multiply_adds"]) / count / 1e12, cell["pretrain_multiply_adds"] / 1e12
    return [f"{pretrain:.2f} + {train:.2f}" if pretrain else f"{train:.2f}", f"{cell['cpu_seconds'] / count:.0f}"]


def gain(cell: dict[str, Any], against: dict[str, Any], test_images: list[int]) -> str:
    """Return the paired gain of a cell over another of the same splits, with its interval, in points."""
    from lit_vision.evaluation.paired_intervals import paired_interval

    found = paired_interval(*paired(cell, against), min(test_images))
    mean, low, high = (_points(value) for value in (found.mean, found.low, found.high))
    return f"{mean} ({low} to {high})"


def _points(value: float) -> str:
    return f"{round(100 * value, 1) + 0.0:+.1f}"  # without -0.0


def paired(cell: dict[str, Any], against: dict[str, Any]) -> tuple[list[float], list[float]]:
    """Return the values of two cells on the splits that both have."""
    own, others = (dict(zip(one["seeds"], one["values"])) for one in (cell, against))
    seeds = [seed for seed in own if seed in others]
    return [own[seed] for seed in seeds], [others[seed] for seed in seeds]


def verdict(cells: dict[str, dict[str, Any]], against: dict[str, dict[str, Any]]) -> str:
    """Return "met", "missed" or "too few splits" with the gain of R@1, the mean of both directions."""
    from lit_vision.evaluation.metrics import paired_difference

    pairs = [paired(cell, against[metric]) for metric, cell in cells.items() if metric.endswith("R@1")]
    own, others = ([sum(values) / len(values) for values in zip(*side)] for side in zip(*pairs))
    found = paired_difference(own, others)
    if found.n < 3:
        return f"too few splits: {_points(found.mean)}"
    met = "met" if found.supports == "a is better" else "missed"
    return f"{met}: {_points(found.mean)}, standard error {100 * (found.se or 0):.1f}"


def photograph_tables(result: dict[str, Any]) -> list[str]:
    """Return zero-shot accuracy on all photographs, and with a few labels, as Markdown."""
    from lit_vision.evaluation.metrics import format_percent
    from lit_vision.results.tables import Table, to_markdown

    def value(cell: dict[str, Any]) -> str:
        return f"{format_percent(cell['mean'], cell['std'])} ({len(cell['values'])})"

    zero = [[one["init"], one["protocol"], value(one)] for one in result["cells"] if one["test"] == "all"]
    few: dict[str, dict[int, str]] = {}
    for cell in result["cells"]:
        if cell["test"] != "all":
            few.setdefault(cell["protocol"], {})[cell["shots"]] = value(cell)
    shots = sorted({one for row in few.values() for one in row})
    note = (
        f"Accuracy on {result['photographs']} photographs in {len(result['class_names'])} classes "
        f"({', '.join(result['class_names'])}); the largest class is {100 * result['largest_class']:.1f} %. Frozen "
        "Lite0 at 224 px and frozen MiniLM; the models saw drawings and their words, no photograph but Lite0's own. "
        "Mean ± standard deviation (trainings)."
    )
    few_note = (
        f"Accuracy on {result['test_images']} held-out photographs, mean ± standard deviation (draws of test, labels "
        "and projections), by labeled photographs of a class; classes with fewer give what they have. Zero-shot and "
        "CoOp (4 contexts, 20 steps of all labels) use the projections trained on emoji + clipart, "
        "logistic regression Lite0's features alone. Photographs: Debian's tuxpaint-stamps-default, GPL-2, so numbers "
        "only."
    )
    rows = [[method, *(values.get(k, "-") for k in shots)] for method, values in few.items()]
    return [
        to_markdown(Table(["drawings", "method", "accuracy"], zero, note)),
        to_markdown(Table(["method", *(f"{k} labels a class" for k in shots)], rows, few_note)),
        "".join(f"- {one}\n" for one in photograph_sentences(result)),
    ]


def photograph_sentences(result: dict[str, Any]) -> list[str]:
    """Return CoOp against logistic regression on the same draws, at each number of labels."""
    from lit_vision.evaluation.metrics import paired_difference

    values = {(one["protocol"], one["shots"]): one["values"] for one in result["cells"] if one["test"] != "all"}
    found = []
    for (method, shots), own in values.items():
        if method == "CoOp":
            difference = paired_difference(own, values["logistic regression", shots])
            supported = {"a is better": "CoOp is better", "b is better": "logistic regression is better"}
            verdict = supported.get(difference.supports, difference.supports)
            gained = f"{_points(difference.mean)} points, standard error {100 * (difference.se or 0):.1f}"
            found.append(f"At {shots} labels a class CoOp against logistic regression: {gained}; {verdict}.")
    return found
