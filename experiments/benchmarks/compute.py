"""Training steps and losses against lightly's (pip install 'lit-vision[bench]'), and against what matrix products of the same shapes reach here.

A step is forward, backward and AdamW. The contestants of a pair are built in one process on the same images and take turns; ratios are taken
within a turn. The share of the matrix rate is the step's multiply-adds over what the layers' own products (forward, gradient of the input,
gradient of the weight; a convolution's as the product of its unfolded patches), one after another by themselves, do in the same time. Writes where MAE's time goes to runs/benchmark/compute.txt.

What each measure gave an MAE ViT-B/16 step of 16 images, seconds of CPU on one core of a Xeon with AMX (before: the same eager timm blocks as
lightly's, lightly's own step in the same minutes 13.1 in fp32 and 8.7 in bf16):
    fused AdamW                                                     0.70 -> 0.16 s, fp32 and bf16
    fp32: visible patches alone embedded, hidden ones alone predicted, tokens left in shuffled order     forward + backward 12.1 -> 11.5 s
    bf16: the same, and plain products instead of the fused attention kernel                             forward + backward 9.5 -> 6.0 s
          (of it the attention about 1.4 s by its own times, see methods/mae_decoder.py)
    torch.compile, activation checkpointing                         the rows "compiled" and "checkpointing"; neither is on by default
On two EPYC cores without AMX (measured/epyc-2-cores-compute.json): 0.891 of the matrix rate in fp32 (1.03 times lightly's, compiled 1.16 times) and
0.790 in bf16 (1.26 times).
What stands in the way of the matrix rate in bf16 (profile of that step, with AMX): linear layers 57 %, copies between float32 and bfloat16 and into
the layout of the attention's products 10 %, those products 9 %, softmax 6 %, GELU 4 %, AdamW 3 %, layer norm 2 %, sums of bias gradients 2 %.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import shutil
import statistics
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from benchmarks import _lightly
from benchmarks._products import products
from torch import Tensor, nn

from lit_vision.methods.simclr.nt_xent import nt_xent

PAIRS, WIDTH = (1024, 2048, 4096, 8192, 16384), 128
MOST_LIGHTLY = 8192  # pairs; beyond, its matrices need 17 GB
MEMORY = {8192: 200, 16384: 400}  # pairs: MB above the inputs, at most
BATCH, NAME, VIT = 16, "ViT-B/16", ("vit_base_patch16_224", {})
DECODER = {"decoder_width": 512, "decoder_depth": 8, "decoder_heads": 16}
PAIRS_OF_IMAGES, SIDE, RESNET = 8, 224, ("resnet50", {})
COMPILED = True  # the row "compiled" costs minutes of a C++ compiler
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PROFILE = Path("runs/benchmark/compute.txt")
Step = Callable[[], None]


def measure(repeats: int) -> list[dict[str, Any]]:
    """NT-Xent's time and memory, then the steps of MAE and SimCLR."""
    warnings.filterwarnings("ignore", module="lightly")
    PROFILE.unlink(missing_ok=True)
    rows = loss_rows(repeats)
    for section in (mae_rows, simclr_rows):
        for precision in DTYPES:
            rows += section(precision, repeats)
    return rows


# NT-Xent


def loss_rows(repeats: int) -> list[dict[str, Any]]:
    """Forward and backward of pairs of vectors, and the most memory above the inputs."""
    contestants = {"ours": lambda a, b: nt_xent(a, b, 0.1)}
    if _lightly.installed():
        from lightly.loss import NTXentLoss

        contestants["lightly"] = NTXentLoss(temperature=0.1)
    rows = []
    for pairs in PAIRS:
        here = {name: loss for name, loss in contestants.items() if name == "ours" or pairs <= MOST_LIGHTLY}
        times: dict[str, list[float]] = {name: [] for name in here}
        memory = dict.fromkeys(here, 0.0)
        for turn in range((1 if pairs > 4096 else max(1, min(repeats, 3))) + 1):  # the first one warms up
            for name, loss in here.items():
                if pairs > 4096 and name == "lightly" and not turn:
                    continue  # its matrices take seconds to fill, warm or not
                z = [torch.randn(pairs, WIDTH, requires_grad=True) for _ in range(2)]
                seconds, megabytes = _with_peak(lambda loss=loss, z=z: loss(*z).backward())
                memory[name] = max(memory[name], megabytes)
                if turn:
                    times[name].append(seconds)
        what = f"NT-Xent, {pairs} pairs"
        for name in here:
            rows.append(_row(f"{what}: {name}", statistics.median(times[name]), "s"))
            limit = MEMORY.get(pairs) if name == "ours" else None
            met = memory[name] <= limit if limit else None
            target = f"at most {limit} MB" if limit else "-"
            rows.append(_row(f"{what}: {name}, above the inputs", memory[name], "MB", "-", target, met))
        if "lightly" in here:
            ratio = statistics.median(a / b for a, b in zip(times["ours"], times["lightly"]))
            met, target = (ratio <= 0.5, "at most 0.5 x") if pairs == 8192 else (None, "-")
            rows.append(_row(f"{what}: time of ours", ratio, "x", "lightly", target, met))
    return rows


def _with_peak(run: Step) -> tuple[float, float]:
    """Seconds of `run`, and the most MB that the process held above what it held before; sampled every 2 ms."""
    _give_back()
    before, most, over = _resident(), [0.0], threading.Event()

    def watch() -> None:
        while not over.wait(0.002):
            most[0] = max(most[0], _resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    run()
    seconds = time.perf_counter() - start
    over.set()
    watcher.join()
    return seconds, max(0.0, most[0] - before)


def _give_back() -> None:
    """Memory that was freed goes back to the system: kept by the C library, it would hide what the next run takes."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _resident() -> float:
    """MB of this process in memory; 0 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * 4096 / 1e6


# steps


def mae_rows(precision: str, repeats: int) -> list[dict[str, Any]]:
    """MAE's step against lightly's and against the matrix rate, and what its options do."""
    from lit_vision.methods.mae.mae import MAE

    dtype, turns = DTYPES[precision], max(1, min(repeats, 3))
    torch.manual_seed(0)
    ours = MAE(*VIT, **DECODER)
    side = ours.grid[0] * ours.patch_size
    images = torch.randn(BATCH, 3, side, side)
    batch = {"images": images[:, None], "key": torch.arange(3 * BATCH).view(BATCH, 3)}
    contestants = {"ours": _step(ours, lambda: ours.batch_loss(batch, 0), dtype)}
    replay, share_of_layers = products(contestants["ours"])
    contestants["products"] = replay
    if _lightly.installed():
        theirs = _lightly.mae(*VIT, DECODER)
        contestants["lightly"] = _step(theirs, lambda: theirs(images), dtype, fused=False)  # as its examples have it
    times = _take_turns(contestants, turns)
    what = f"MAE {NAME}, {precision}, batch {BATCH}"
    rows = [_rate(f"{what}: {name}", times[name]) for name in ("ours", "lightly") if name in times]
    if "lightly" in times:
        least = {"fp32": 1.1, "bf16": 1.25}[precision]
        rows.append(_ratio(f"{what}: speed of ours", times["ours"], times["lightly"], "lightly's eager MAE", least))
    rows.append(_share(what, times, share_of_layers, {"fp32": 0.8, "bf16": 0.68}[precision]))
    _profile(what, contestants["ours"])
    del contestants
    theirs = None
    compiled = COMPILED and (shutil.which("g++") or shutil.which("clang++"))
    options = {"checkpointing": {"checkpointing": True}} | ({"compiled": {"compile": True}} if compiled else {})
    for name, option in options.items():
        other = MAE(*VIT, **DECODER, **option)
        pair = {
            "ours": _step(ours, lambda: ours.batch_loss(batch, 0), dtype),
            name: _step(other, lambda other=other: other.batch_loss(batch, 0), dtype),
        }
        if name == "compiled":
            pair["products"] = replay
        times = _take_turns(pair, turns)
        rows.append(_ratio(f"{what}: speed, {name}", times[name], times["ours"], "without"))
        if name == "compiled":
            rows.append(_share(what, {**times, "ours": times[name]}, share_of_layers, said=f", {name}"))
    return rows


def simclr_rows(precision: str, repeats: int) -> list[dict[str, Any]]:
    """SimCLR's step with a ResNet-50 and a head of 2 layers with batch norm, against the modules of lightly's example."""
    from lit_vision.methods.simclr.simclr import SimCLR

    views, dtype = torch.rand(PAIRS_OF_IMAGES, 2, 3, SIDE, SIDE), DTYPES[precision]
    torch.manual_seed(0)
    ours = SimCLR(*RESNET, projection_batch_norm=True)
    contestants = {"ours": _step(ours, lambda: ours.loss(views), dtype)}
    contestants["products"], share_of_layers = products(contestants["ours"])
    if _lightly.installed():
        theirs = _lightly.simclr(*RESNET, ours.backbone.width)
        contestants["lightly"] = _step(theirs, lambda: theirs(views), dtype, fused=False)
    times = _take_turns(contestants, max(1, min(repeats, 3)))
    what = f"SimCLR ResNet-50, {precision}, {PAIRS_OF_IMAGES} pairs"
    named = [name for name in ("ours", "lightly") if name in times]
    rows = [_rate(f"{what}: {name}", times[name], PAIRS_OF_IMAGES, "pairs/s") for name in named]
    if "lightly" in times:
        rows.append(_ratio(f"{what}: speed of ours", times["ours"], times["lightly"], "lightly's modules"))
    rows.append(_share(what, times, share_of_layers))
    return rows


def _step(module: nn.Module, loss: Callable[[], Tensor], dtype: torch.dtype, fused: bool = True) -> Step:
    """Forward, backward and AdamW, in mixed precision for bf16."""
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-4, fused=fused or None)

    def run() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def _take_turns(contestants: dict[str, Step], turns: int) -> dict[str, list[float]]:
    """Seconds of each, `turns` times after one that warms up; taking turns, so that a busy moment hits all of them."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(turns + 1):
        for name, run in contestants.items():
            start = time.perf_counter()
            run()
            if turn:
                times[name].append(time.perf_counter() - start)
    return times


def _profile(what: str, step: Step) -> None:
    """Append the operators that take most of a step to the profile's file."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step()
    table = profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=16, max_name_column_width=48)
    PROFILE.parent.mkdir(parents=True, exist_ok=True)
    with PROFILE.open("a", encoding="utf-8") as file:
        file.write(f"{what}\n{table}\n")


def _rate(what: str, seconds: list[float], images: int | None = None, unit: str = "images/s") -> dict[str, Any]:
    return _row(what, (images or BATCH) / statistics.median(seconds), unit)


def _ratio(
    what: str, ours: list[float], theirs: list[float], against: str, least: float | None = None
) -> dict[str, Any]:
    """How many times faster the first is, within a turn."""
    ratio = statistics.median(b / a for a, b in zip(ours, theirs))
    if least is None:
        return _row(what, ratio, "x", against)
    return _row(what, ratio, "x", against, f"at least {least} x", ratio >= least)


def _share(
    what: str, times: dict[str, list[float]], share_of_layers: float, least: float | None = None, said: str = ""
) -> dict[str, Any]:
    """A step's multiply-adds over what its layers' products do in the same time: that of the products, grown by what they leave out."""
    share = statistics.median(b / a for a, b in zip(times["ours"], times["products"])) / share_of_layers
    met, target = (None, "-") if least is None else (share >= least, f"at least {least}")
    return _row(f"{what}: share of the matrix rate{said}", share, "", "its layers' products by themselves", target, met)


def _row(
    what: str, value: float, unit: str, against: str = "-", target: str = "-", met: bool | None = None
) -> dict[str, Any]:
    return {"what": what, "value": value, "unit": unit, "against": against, "target": target, "met": met}
