"""Smaller networks: top-1, bytes, multiply-adds and milliseconds an image, pruned, distilled, in int8, and combined.

Which of 18 photographs of scikit-image is a patch of 96 pixels from? EfficientNet-Lite0 (ImageNet weights of a Python
package) learns it from 30 patches a class, and is the teacher. Its channels are pruned (`lit-vision prune`) and it is
trained a little further, by the labels or by itself as it was; a small ResNet from random weights learns from the
labels or from the teacher; some of these are quantized (`lit-vision export --int8`). Accuracy is of 5 seeds; time does
not depend on weights, so it is that of the first seed's files, which take turns in one process on one thread.
Prints from experiments/results/compression.json only.
Run: make table-compression        Train and measure some networks again: make verify-compression
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from studies import compression_networks as networks
from studies.compression_networks import CLASSES, KEPT, LITE0, NETWORKS, PATCHES, QUANTIZED, RESNET, SEEDS, SHOTS, SIDE
from table_script import RESULTS, ROOT, Tally, run_table

ROWS = (*NETWORKS, *(f"{name}-int8" for name in QUANTIZED))
ROUNDS, REPEATS = 40, 5  # of the turns, and single images in each
RESULT = RESULTS / "compression.json"


def run_seed(seed: int) -> dict[str, Any]:
    """Return top-1 of every row for one seed, and the seconds; of the first seed also before the pruned train further.

    Each value is written as soon as it is measured.
    """
    import torch

    from lit_vision.io.atomic import write_json
    from lit_vision.predict.models import load_method, load_model
    from lit_vision.predict.tasks import accuracy_check_for

    torch.set_num_threads(1)
    counted = time.process_time()
    file = networks.FOLDER / f"seed-{seed}" / "values.json"
    values = json.loads(file.read_text()) if file.exists() else {"top1": {}, "untrained": {}, "seconds": 0.0}
    _, metadata = load_method(networks.network_file(seed, "full"))
    check = accuracy_check_for(PATCHES, metadata, {}, False)

    def keep(part: str, name: str, measure: Callable[[], Any]) -> None:
        nonlocal counted
        if name in values[part]:
            return
        values[part][name] = measure()
        values["seconds"] = round(values["seconds"] + time.process_time() - counted, 1)
        counted = time.process_time()
        write_json(file, values)
        print(f"seed {seed}: {part} {name} {values[part][name]}", flush=True)

    def top1(path: Path) -> float:
        return check.measure(load_model(path, "cpu"))

    for name in NETWORKS:
        keep("top1", name, lambda name=name: top1(networks.network_file(seed, name)))
    for percent in KEPT if seed == 0 else ():
        keep("untrained", str(percent), lambda percent=percent: top1(networks.pruned_file(seed, percent)))
    for name in QUANTIZED:

        def measure(name: str = name) -> dict[str, float]:
            paths = networks.quantized(seed, name, check)
            return {form: load_model(path).metadata.options["int8"]["after"] for form, path in paths.items()}

        keep("top1", f"{name}-int8", measure)
    return values


def row_facts(row: str) -> dict[str, Any]:
    """Return parameters, multiply-adds of an image, and bytes of the .onnx of a row, from the first seed."""
    import torch

    from lit_vision.convert.prune import multiply_adds
    from lit_vision.predict.models import load_method

    name = row.removesuffix("-int8")
    method, _ = load_method(networks.network_file(0, name))
    return {
        "parameters": sum(p.numel() for p in method.parameters()),
        "multiply_adds": multiply_adds(method, torch.zeros(1, 3, SIDE, SIDE)),
        "bytes": networks.exported(0, name)["onnx"].with_name(f"{row}.onnx").stat().st_size,
    }


def latencies() -> dict[str, dict[str, list[float]]]:
    """Return milliseconds of one image by row and runtime, one value a round, in which every row has its turn."""
    import torch

    from lit_vision.predict.models import load_model

    models: list[tuple[str, str, Callable[[Any], Any]]] = []
    for row in ROWS:
        for form, path in networks.exported(0, row.removesuffix("-int8")).items():
            file = path.with_name(f"{row}{path.suffix}")
            models.append((row, form, load_model(file, "cpu", threads=1).run))
    image = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    found: dict[str, dict[str, list[float]]] = {row: {"onnx": [], "openvino": []} for row in ROWS}
    for number in range(ROUNDS):
        shift = number * 7 % len(models)  # another order each round
        for row, form, run in models[shift:] + models[:shift]:
            run(image)
            times = []
            for _ in range(REPEATS):
                start = time.perf_counter()
                run(image)
                times.append(time.perf_counter() - start)
            found[row][form].append(round(1000 * min(times), 4))
    return found


def training_multiply_adds(facts: dict[str, dict[str, Any]]) -> int:
    """Return the multiply-adds of all trainings: a step costs three passes, and one of the teacher where it teaches."""
    images = SEEDS * SHOTS * CLASSES
    total = 0
    for name, (_, epochs, _) in NETWORKS.items():
        taught = facts["full"]["multiply_adds"] if name.endswith("taught") else 0
        total += images * epochs * (3 * facts[name]["multiply_adds"] + taught)
    return total


def make() -> None:
    """Train and measure what is missing, and write the results file."""
    import onnxruntime
    import openvino

    from lit_vision.cli.main import main as lit_vision
    from lit_vision.results.schema import make_cell, write_result

    if code := lit_vision(["data", "patches", "--out", PATCHES]):
        sys.exit(code)
    stored = [run_seed(seed) for seed in range(SEEDS)]
    facts, times = {row: row_facts(row) for row in ROWS}, latencies()
    cells = []
    for row in ROWS:
        values = [one["top1"][row] for one in stored]
        more: dict[str, Any] = {"milliseconds": times[row]}
        if row.endswith("-int8"):
            more["onnx_top1"] = values[0]["onnx"]  # of the first seed
            values = [value["openvino"] for value in values]
        if row in {f"pruned-{percent}" for percent in KEPT}:
            more["untrained_top1"] = stored[0]["untrained"][row.split("-")[1]]  # of the first seed
        init = f"scratch-{RESNET}" if row.startswith("small") else f"timm:{LITE0}"
        cells.append(make_cell(init, row, SHOTS * CLASSES, values, **more, **facts[row]))
    write_result(
        RESULT,
        recipe="table-compression",
        cells=cells,
        seconds=round(sum(one["seconds"] for one in stored), 1),
        training_multiply_adds=training_multiply_adds(facts),
        runtimes={"onnxruntime": onnxruntime.__version__, "openvino": openvino.__version__.split("-")[0]},
    )


# ---- the table


def ratios(cells: dict[str, dict[str, Any]], row: str, form: str) -> list[float]:
    """Return how many times faster than the full network a row is, one value a round."""
    pairs = zip(cells["full"]["milliseconds"][form], cells[row]["milliseconds"][form])
    return [full / own for full, own in pairs]


def show() -> None:
    """Print the table and write it as Markdown."""
    from lit_vision.results.schema import read_result
    from lit_vision.results.tables import Table, to_markdown

    result = read_result(RESULT)
    cells = {cell["protocol"]: cell for cell in result["cells"]}
    lines = []
    for row in ROWS:
        cell = cells[row]
        text = NETWORKS[row.removesuffix("-int8")][0] + (", int8" if row.endswith("-int8") else "")
        line = [
            text,
            f"{100 * cell['mean']:.1f} ± {100 * cell['std']:.1f}",
            f"{cell['bytes'] / 1e6:.2f}",
            f"{cell['multiply_adds'] / 1e6:.1f}",
        ]
        for form in ("onnx", "openvino"):
            low, middle, high = np.percentile(ratios(cells, row, form), (25, 50, 75))
            milliseconds = statistics.median(cell["milliseconds"][form])
            line.append(f"{milliseconds:.2f}: {middle:.2f}x ({low:.2f} to {high:.2f})")
        lines.append(line)
    before = ", ".join(f"{100 * cells[f'pruned-{p}']['untrained_top1']:.1f} %" for p in KEPT)
    quantized = [cells[f"{name}-int8"] for name in QUANTIZED]
    gaps = [100 * (cell["onnx_top1"] - cell["values"][0]) for cell in quantized]
    versions = result["runtimes"]
    sentences = [
        f"{SEEDS} seeds (± sd): subset of {SHOTS} labeled patches a class, first weights, order; 720 test patches.",
        f"Bytes of the .onnx. Milliseconds of one image on one thread, and how many times faster than the teacher "
        f"(median and quartiles of {ROUNDS} rounds in which all take turns), ONNX Runtime {versions['onnxruntime']}, "
        f"OpenVINO {versions['openvino']}.",
        f"Before further training the first seed's pruned networks have {before} (30, 50, 70 % pruned).",
        f"int8: top-1 in OpenVINO; the first seed's in ONNX Runtime differs by {min(gaps):+.1f} to {max(gaps):+.1f} "
        "points.",
        f"Trainings are short on purpose, 1 to 5 epochs of {SHOTS * CLASSES} patches "
        f"({result['training_multiply_adds'] / 1e12:.1f} T multiply-adds in all); "
        "the teaching was chosen on one seed, nothing else was tuned. "
        f"Training and measuring took {result['seconds'] / 60:.0f} minutes of one core.",
    ]
    head = ["network", "top-1, %", "MB", "M multiply-adds", "ms in ONNX Runtime", "ms in OpenVINO"]
    table = to_markdown(Table(head, lines, " ".join(sentences)))
    print(table)
    RESULT.with_suffix(".md").write_text(table, encoding="utf-8")


def verify() -> int:
    """Train the teacher, the most pruned network and the small one of the first seed again; 1 if a value moved."""
    import tempfile

    import torch

    from lit_vision.cli.main import main as lit_vision
    from lit_vision.predict.models import load_method, load_model
    from lit_vision.predict.tasks import accuracy_check_for
    from lit_vision.results.schema import read_result

    torch.set_num_threads(1)
    cells = {cell["protocol"]: cell for cell in read_result(RESULT)["cells"]}
    if code := lit_vision(["data", "patches", "--out", PATCHES]):
        sys.exit(code)
    tally, names = Tally(), ("full", "pruned-70", "small")
    with tempfile.TemporaryDirectory() as folder:
        networks.FOLDER = Path(folder)
        for name in names:
            path = networks.network_file(0, name)
            method, metadata = load_method(path)
            top1 = accuracy_check_for(PATCHES, metadata, {}, False).measure(load_model(path, "cpu"))
            tally.add(f"{name}, top-1", cells[name]["values"][0], top1, 0.03)  # other machines round otherwise
            parameters = sum(p.numel() for p in method.parameters())
            tally.add(f"{name}, parameters", cells[name]["parameters"] / 1e6, parameters / 1e6, 0)
    return tally.close(2 * len(names))


def print_commands() -> None:
    """Print what would be trained."""
    for name, (text, epochs, lr) in NETWORKS.items():
        print(f"{SEEDS} seeds, {epochs} epochs of {SHOTS * CLASSES} patches, lr {lr:g}: {name} ({text})")
    print(f"int8 after training: {', '.join(QUANTIZED)}")


def main() -> int:
    """Run the script; return its exit code."""
    os.chdir(ROOT)  # data/ and runs/ are the repository's
    return run_table(str(__doc__), make, show, verify, print_commands)


if __name__ == "__main__":
    sys.exit(main())
