"""Memory of a study (lit_vision/study): anonymous memory with 2,000 and with 50,000 JPEGs of 500 x 375 pixels.

A process runs the parts of a study that see images, with a network so small that its own tensors hardly count: reading,
frozen features, probes and k-NN, a pre-training, and a training on labels with its answers for the test split. Another
one reads its RssAnon from /proc twenty times a second (Linux only). Pages of mapped files are not anonymous: the kernel
drops them when memory is short. Importing torch and Lightning alone takes 480 MB with torch's CUDA build, so what is
counted is the growth after the imports. The JPEGs are links to 16 files; nothing that is measured knows a file again by
its content. About 10 CPU seconds for 1,000 images.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

COUNTS = (2_000, 50_000)
DISTINCT = 16
TEST_SHARE = 0.2
MOST = 300  # MB
PART = "part: "  # begins a line of the process that is watched
IMPORTS = "torch, Lightning and the rest imported"
TINY = {"channels": [4, 4, 8, 16], "layers": [1, 1, 1, 1]}
SIDE, LABELS, STEPS = 96, 500, 8


def measure(repeats: int) -> list[dict[str, Any]]:
    """Measure the largest anonymous memory of each part, once for each number of images."""
    from benchmarks._processes import write_jpegs
    from benchmarks._rows import make_row

    rows, peaks = [], {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_jpegs(folder / "jpegs", DISTINCT)
        for count in COUNTS:
            link_images(folder / "jpegs", folder / str(count), count)
            found = run_and_watch(folder / str(count), folder / f"run-{count}")
            imported = found.pop(IMPORTS)
            rows.append(make_row(f"{count} images: {IMPORTS}", imported, "MB"))
            rows += [make_row(f"{count} images: {part}", peak - imported, "MB more") for part, peak in found.items()]
            peaks[count] = max(found.values()) - imported
            target = (f"at most {MOST} MB", peaks[count] <= MOST)
            rows.append(make_row(f"{count} images: largest growth", peaks[count], "MB", "-", *target))
    few, many = min(COUNTS), max(COUNTS)
    more, target = peaks[many] - peaks[few], f"at most {MOST} MB"
    rows.append(make_row(f"{many} images: more than {few}", more, "MB", "-", target, more <= MOST))
    return rows


def link_images(source: Path, root: Path, count: int) -> None:
    """Make a folder of two classes with a test split, of links to the files of `source`."""
    files = sorted(source.iterdir())
    test = round(count * TEST_SHARE)
    for i in range(count):
        path = root / ("test" if i < test else "train") / "ab"[i % 2] / f"{i:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        os.link(files[i // 2 % len(files)], path)


def run_and_watch(root: Path, run: Path) -> dict[str, float]:
    """Return the largest RssAnon, in MB (10^6 bytes), of each part of a study in a process of its own."""
    command = [sys.executable, __file__, str(root), str(run)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    peaks, part = {IMPORTS: 0.0}, [IMPORTS]

    def follow() -> None:
        for line in process.stdout:
            if not line.startswith(PART):
                continue
            part[0] = line.strip().removeprefix(PART)
            print(f"  {root.name} images, {time.strftime('%H:%M:%S')}: {part[0]}", file=sys.stderr, flush=True)

    reader = threading.Thread(target=follow)
    reader.start()
    while process.poll() is None:
        peaks[part[0]] = max(peaks.get(part[0], 0.0), anonymous_memory(process.pid))
        time.sleep(0.05)
    reader.join()
    if process.returncode:
        raise RuntimeError(f"the study of {root} failed")
    return peaks


def anonymous_memory(pid: int) -> float:
    """Return the RssAnon of a process in MB (10^6 bytes); 0 if it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) * 1024 / 1e6 for line in status.splitlines() if line.startswith("RssAnon")), 0.0)


def study(root: Path, run: Path) -> None:
    """Run the parts of a study, and print the name of each before it begins."""
    from lit_vision.backbones.backbone import Backbone
    from lit_vision.study import training
    from lit_vision.study.cells import CellKey
    from lit_vision.study.encoders import EncoderStore
    from lit_vision.study.frozen import fit_probe, measure_frozen
    from lit_vision.study.images import read_images
    from lit_vision.study.pixel_cache import PixelCache
    from lit_vision.study.presets import Network, preset_for
    from lit_vision.study.progress import Reporter
    from lit_vision.weights.load import save_backbone

    def begin(part: str) -> None:
        print(f"{PART}{part}", flush=True)

    network = Network("cnn", "resnet18", TINY)
    preset = preset_for(SIDE)
    preset = replace(preset, cnn=network, networks={"toy": network}, simclr={**preset.simclr, "batch_size": 32})
    with PixelCache(run, log=lambda line: None) as cache:
        begin("reading")
        images = read_images(root, SIDE, cache=cache)
        begin("frozen features")
        store = EncoderStore(images, preset, run, Reporter())
        store.reporter.out = sys.stderr
        save_backbone(store.path("toy"), Backbone("resnet18", **TINY), [0.5] * 3, [0.25] * 3)
        encoder = store.load_public("toy")
        every = int((images.labels >= 0).sum())
        for init, features in (("pixels", images.flat_pixels()), ("toy", (encoder.pool, encoder.test))):
            for labels in (LABELS, every) if init == "toy" else (LABELS,):
                begin(f"k-NN and linear probe, {init}, {labels} labels")
                for protocol in ("knn", "linear"):
                    measure_frozen(CellKey(init, protocol, labels, 0), *features, images)
        begin("pre-training")
        module, data = training.pretraining("simclr", images, preset, 0)
        training.train(module, data, None, 0, steps=STEPS)
        begin("training on labels, and its answers")
        head = fit_probe(CellKey("toy", "finetune", LABELS, 0), *store.head_features("toy"), images)
        rows = images.subset(LABELS, 0)
        module, data = training.classification("toy", images, rows, preset, 0, store.path("toy"), head)
        training.train(module, data, None, 0, steps=STEPS)
        training.probabilities(module, images, SIDE)


if __name__ == "__main__":
    Path(sys.argv[2]).mkdir()
    study(Path(sys.argv[1]), Path(sys.argv[2]))
