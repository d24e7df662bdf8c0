"""JPEG bytes to views: images per second of one core, of our pipeline and of other libraries'.

All pipelines run in one process and take turns in short rounds. CPU time counts, so that other programs on the machine
matter less; each ratio is the median of the ratios within a round. Every pipeline ends at uint8 views (in a second
table at normalized floats). The photographs are cropped at run time, see _photographs.py. Writes
runs/benchmark/data.png.
"""

from __future__ import annotations

import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from benchmarks import _photographs, _pipelines
from benchmarks._rows import make_row
from PIL import Image

from lit_vision.data.datasets import ImageFileDataset, ImageReader
from lit_vision.data.folder import scan
from lit_vision.data.loader import make_loader
from lit_vision.data.stored_images import downscale
from lit_vision.data.views.decode import decode_scaled, read_header
from lit_vision.data.views.params import make_view_spec
from lit_vision.data.views.views import Views, make_views, snap_to_decoded_grid

OURS, DECODE, ALBUMENTATIONS, PIL = "ours", "cv2 decode only", "cv2 + albumentations", "torchvision v1 + PIL"
LEAN = "cv2 + albumentations, bilinear and small kernels"
CHART = Path("runs/benchmark/data.png")
Rates = dict[str, list[float]]


def measure(repeats: int) -> list[dict[str, Any]]:
    """Measure rates, ratios and their targets; return no rows without photographs."""
    cv2.setNumThreads(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        photographs = _photographs.load_photographs()
        if not photographs:
            print(_photographs.MISSING)
            return []
        small, large = (
            _photographs.crop_jpegs(photographs, 500, 375, 26),
            _photographs.crop_jpegs(photographs, 1600, 1200, 13, seed=1),
        )
        packed = [downscale(data, 256, 92) for data in small]
        kilobytes = {
            name: sum(map(len, part)) / len(part) / 1e3 for name, part in (("500x375", small), ("1600x1200", large))
        }
        print("kB per file:", ", ".join(f"{name} {value:.0f}" for name, value in kilobytes.items()), "\n")
        rows, charts = [], {}
        for name, images, targets in (("500x375", small, (0.6, 2.0, 15.0)), ("1600x1200", large, (None, 1.7, 8.0))):
            rates = take_turns(pipelines(), images, 2 * repeats)
            charts[name] = rates
            rows += _rate_rows(f"SimCLR {name}", rates)
            for other, target in zip((DECODE, ALBUMENTATIONS, PIL), targets):
                rows.append(_ratio(f"SimCLR {name}: ours", rates, OURS, other, target))
            rows.append(_ratio(f"SimCLR {name}: ours", rates, OURS, LEAN, None))
            rows += _psnr_rows(f"SimCLR {name}", images)
        rates = take_turns(
            {"MAE": _pipelines.with_lit_vision("mae"), DECODE: _pipelines.decode_cv2}, small, 4 * repeats
        )
        rows.append(_ratio("MAE 500x375: ours", rates, "MAE", DECODE, 0.85))
        rows.append(_ratio("packed 256", _packed_rates(small, packed, 4 * repeats), "packed", "unpacked", 1.5))
        floats = {name: _pipelines.as_floats(run) for name, run in pipelines(libraries_only=True).items()}
        floats["lightly"] = _pipelines.with_lightly(floats=True)
        rates = take_turns(floats, small, repeats)
        charts["500x375, normalised floats"] = rates
        rows += _rate_rows("to normalised floats, 500x375", rates)
        rows += _exact_rows(small, repeats)
        rows += _quick_rows(small, repeats)
        rows += _loader_rows(small, repeats)
        rows.append(_keying_row())
        chart(charts, CHART)
        print(f"chart: {CHART}\n")
        return rows
    finally:
        torch.set_num_threads(threads)


def pipelines(libraries_only: bool = False) -> dict[str, _pipelines.Pipeline]:
    """Return {name: pipeline}; lightly only where it is installed (extra `bench`)."""
    found = {
        OURS: _pipelines.with_lit_vision(),
        ALBUMENTATIONS: _pipelines.with_albumentations(),
        LEAN: _pipelines.with_albumentations(lean=True),
        "torchvision v2 + decode_jpeg": _pipelines.with_torchvision_v2(),
        PIL: _pipelines.with_torchvision_pil(),
    }
    try:
        found["lightly"] = _pipelines.with_lightly()
    except ImportError:
        print("lightly is not installed (pip install -e '.[bench]'): left out\n")
    if not libraries_only:
        found[DECODE] = _pipelines.decode_cv2
        found["simplejpeg decode only"] = _pipelines.decode_simplejpeg
        found["entropy decoding only (1/8, gray)"] = _pipelines.decode_entropy
    return found


def take_turns(pipelines: dict[str, Callable], images: list[bytes], rounds: int) -> Rates:
    """Return {name: images per CPU second in each round}; the first round, which fills caches, is left out."""
    rates: Rates = {name: [] for name in pipelines}
    for turn in range(rounds + 1):
        names = list(pipelines)
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            run, start = pipelines[name], time.process_time()
            for i, data in enumerate(images):
                run(data, turn * len(images) + i)
            if turn:
                rates[name].append(len(images) / (time.process_time() - start))
    return rates


def _packed_rates(small: list[bytes], packed: list[bytes], rounds: int) -> Rates:
    run = _pipelines.with_lit_vision()
    both = {
        "unpacked": lambda pair, i: run(pair[0], i),
        "packed": lambda pair, i: run(pair[1], i),
    }
    return take_turns(both, list(zip(small, packed)), rounds)


def _rate_rows(what: str, rates: Rates) -> list[dict]:
    return [make_row(f"{what}: {name}", statistics.median(rate), "images/s") for name, rate in rates.items()]


def _ratio(what: str, rates: Rates, one: str, other: str, target: float | None) -> dict:
    value = statistics.median(a / b for a, b in zip(rates[one], rates[other]))
    return make_row(what, value, "x", other, f">= {target} x" if target else "-", value >= target if target else None)


def psnr(image: np.ndarray, reference: np.ndarray) -> float:
    """Return the peak signal to noise ratio of two uint8 arrays in dB, 99 if they are equal."""
    error = np.square(image.astype(np.float64) - reference).mean()
    return 99.0 if error == 0 else 10 * np.log10(255**2 / error)


def _psnr_rows(what: str, images: list[bytes], keys: int = 8) -> list[dict]:
    """Compare each crop, without colors and blur, with Pillow's antialiased bicubic of the full decode."""
    views = make_views("simclr", _pipelines.SIZE, 0)
    assert views.spec == make_view_spec("simclr", _pipelines.SIZE)  # nothing is switched off in what is timed
    found = []
    for i, data in enumerate(images):
        header, full = read_header(data), Image.open(io.BytesIO(data))
        for index in range(i, i + keys * len(images), len(images)):
            draws = views.sample_params(header.height, header.width, 0, index, 0)
            scale = views.decoding_scale(header, draws)
            image, scale = decode_scaled(data, header, scale)
            for drawn in draws:
                d = (drawn if scale == 1 else snap_to_decoded_grid(drawn, scale))._replace(
                    flip=False, brightness=1.0, contrast=1.0, saturation=1.0, hue=0.0, gray=False, sigma=0.0
                )
                box = [scale * x for x in (d.left, d.top, d.left + d.width, d.top + d.height)]
                expected = full.crop(box).resize((views.spec.width, views.spec.height), Image.Resampling.BICUBIC)
                found.append(psnr(views.render(image, d), np.asarray(expected)))
    middle, low = np.median(found), np.percentile(found, 5)
    against = "Pillow's antialiased bicubic crop"
    return [
        make_row(f"{what}: PSNR, median of {len(found)} crops", middle, "dB", against, ">= 37 dB", bool(middle >= 37)),
        make_row(f"{what}: PSNR, 5th percentile", low, "dB", against),
    ]


def _exact_rows(images: list[bytes], repeats: int) -> list[dict]:
    """Compare one color matrix with the exact operations: the pixels of the same keys, and the rate."""
    one, exact = (make_views("simclr", _pipelines.SIZE, 0, exact=e) for e in (False, True))
    pairs = [(one(data, 1, i), exact(data, 1, i)) for i, data in enumerate(images * 4)]
    jittered = [(a, b) for pair in pairs for a, b in zip(*pair) if (a != b).any()]
    near = statistics.mean(float((np.abs(a.astype(int) - b) <= 1).mean()) for a, b in jittered)
    rates = take_turns(
        {"matrix": _pipelines.with_lit_vision(), "exact": _pipelines.with_lit_vision(exact=True)}, images, repeats
    )
    return [
        make_row(
            "color matrix: PSNR of a jittered view, median",
            statistics.median(psnr(a, b) for a, b in jittered),
            "dB",
            "exact",
        ),
        make_row("color matrix: share of pixel values within 1", near, "", "exact"),
        _ratio("color matrix: rate of the whole path", rates, "matrix", "exact", None),
    ]


def _quick_rows(images: list[bytes], repeats: int) -> list[dict]:
    """Compare the rate of the quick path with full decodes and Pillow's filter, for the views of MAE and SimCLR."""
    rows = []
    for name, options in (("mae", {}), ("simclr", {}), ("simclr", {"exact": True})):
        made = {f"quick {q}": _pipelines.with_lit_vision(name, quick=q, **options) for q in (True, False)}
        what = f"{name}{' exact' if options else ''} view"
        rows.append(
            _ratio(
                f"quick path, {what}: rate", take_turns(made, images, 2 * repeats), "quick True", "quick False", None
            )
        )
        rows += _rate_rows(f"{what}, full decode", take_turns({"quick false": made["quick False"]}, images, repeats))
    return rows


def _loader_rows(images: list[bytes], repeats: int) -> list[dict]:
    """Compare a DataLoader of two workers with this process alone.

    By the clock, which is fair on an idle machine only; and by the CPU time of all processes per image, the workers'
    start included: the share of two idle cores that the loader itself would leave.
    """
    with tempfile.TemporaryDirectory() as folder:
        for i, data in enumerate(images):
            Path(folder, f"{i}.jpg").write_bytes(data)
        scanned = scan(folder)
        split = scanned.splits["train"]
        files = ImageReader(scanned, split.paths, "error", 0)
        dataset = ImageFileDataset(files, split.labels, Views(make_view_spec("simclr", _pipelines.SIZE), 0))
        batches = [[(e, i, 0) for i in range(len(files))] for e in range(16)]
        clock, cpu = [], []
        for _ in range(repeats):
            rates, costs = [], []
            for workers in (0, 2):
                before, batch = sum(os.times()[:4]), iter(make_loader(dataset, batches, workers, persistent=False))
                next(batch)  # workers have started
                start, n = time.perf_counter(), 0
                for views in batch:
                    n += len(views["images"])
                rates.append(n / (time.perf_counter() - start))
                del batch  # the workers end, and their time is counted
                costs.append(sum(os.times()[:4]) - before)
            clock.append(rates[1] / (2 * rates[0]))
            cpu.append(costs[0] / costs[1])
    value = statistics.median(clock)
    return [
        make_row("DataLoader, 2 workers", value, "x", "twice one core (wall clock)", ">= 0.9 x", value >= 0.9),
        make_row("DataLoader, 2 workers, CPU time", statistics.median(cpu), "x", "the same images in one process"),
    ]


def _keying_row(n: int = 2000) -> dict:
    views, times = make_views("simclr", _pipelines.SIZE, 0), []
    for turn in range(9):
        start = time.process_time()
        for i in range(n):
            views.sampler(turn, i, 0, 0, 375, 500)
        times.append((time.process_time() - start) / n * 1e6)
    value = min(times)  # it is so short that other programs on the same core count for more than it does
    return make_row("keying and drawing one view, fastest of 9 turns", value, "us", "-", "<= 10 us", value <= 10)


def chart(tables: dict[str, Rates], path: Path) -> None:
    """Draw one panel of bars per table, on a logarithmic scale."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(len(tables), 1, figsize=(8, 2.6 * len(tables)), constrained_layout=True)
    for axis, (title, rates) in zip(np.atleast_1d(axes), tables.items()):
        names = list(rates)[::-1]
        values = [statistics.median(rates[name]) for name in names]
        bars = axis.barh(names, values, color=["tab:blue" if name == OURS else "tab:gray" for name in names])
        axis.bar_label(bars, [f"{value:.0f}" for value in values], padding=3)
        axis.set(xscale="log", title=f"{title}: images per second, one core, two SimCLR views")
        axis.margins(x=0.12)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
