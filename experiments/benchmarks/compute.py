"""Training steps and losses, compared with lightly's and with the matrix products of the same shapes.

lightly: pip install 'lit-vision[bench]'. A step is forward, backward and AdamW. The candidates of a pair are built in
one process on the same images and take turns; ratios are taken within a turn. The share of the matrix rate is the
step's multiply-adds divided by those that the layers' products (forward, gradient of the input, gradient of the weight;
a convolution's as the product of its unfolded patches), run alone one after another, do in the same time. A profile of
the steps goes to runs/benchmark/compute.txt.

Gain of each measure on a step of MAE ViT-B/16 with 16 images, seconds of CPU on one core of a Xeon with AMX (before:
the same eager timm blocks as lightly's; lightly's step in the same minutes: 13.1 in fp32 and 8.7 in bf16):
    fused AdamW, fp32 and bf16: 0.70 -> 0.16 s
    fp32: only visible patches embedded, only hidden ones predicted, tokens left in shuffled order: forward + backward
          12.1 -> 11.5 s
    bf16: the same, and plain products instead of the fused attention kernel: forward + backward 9.5 -> 6.0 s (of it the
          attention about 1.4 s by its own times, see methods/mae/decoder.py)
    torch.compile, activation checkpointing: the rows "compiled" and "checkpointing"; neither is on by default
On two EPYC cores without AMX (measured/epyc-2-cores-compute.json): 0.891 of the matrix rate in fp32 (1.03 times
lightly's, compiled 1.16 times) and 0.790 in bf16 (1.26 times). Where the time goes in bf16 (profile of that step, with
AMX): linear layers 57 %, copies between float32 and bfloat16 and into the layout of the attention's products 10 %,
those products 9 %, softmax 6 %, GELU 4 %, AdamW 3 %, layer norm 2 %, sums of bias gradients 2 %.
"""

from __future__ import annotations

import shutil
import statistics
import warnings
from pathlib import Path
from typing import Any

import torch
from benchmarks import _lightly
from benchmarks._matrix_products import layer_products
from benchmarks._rows import make_row
from benchmarks._steps import Step, peak_memory, take_turns, training_step

from lit_vision.methods.simclr.network import nt_xent

PAIRS, WIDTH = (1024, 2048, 4096, 8192, 16384), 128
MOST_LIGHTLY = 8192  # pairs; beyond, its matrices need 17 GB
MEMORY = {8192: 200, 16384: 400}  # pairs: MB above the inputs, at most
BATCH, NAME, VIT = 16, "ViT-B/16", ("vit_base_patch16_224", {})
DECODER = {"decoder_width": 512, "decoder_depth": 8, "decoder_heads": 16}
IMAGE_PAIRS, SIDE, RESNET = 8, 224, ("resnet50", {})
COMPILED = True  # the row "compiled" costs minutes of a C++ compiler
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PROFILE = Path("runs/benchmark/compute.txt")


def measure(repeats: int) -> list[dict[str, Any]]:
    """Measure NT-Xent's time and memory, then the steps of MAE and SimCLR."""
    warnings.filterwarnings("ignore", module="lightly")
    PROFILE.unlink(missing_ok=True)
    rows = loss_rows(repeats)
    for section in (mae_rows, simclr_rows):
        for precision in DTYPES:
            rows += section(precision, repeats)
    return rows


# NT-Xent


def loss_rows(repeats: int) -> list[dict[str, Any]]:
    """Measure forward and backward of pairs of vectors, and the peak memory above the inputs."""
    candidates = {"ours": lambda a, b: nt_xent(a, b, 0.1)}
    if _lightly.is_installed():
        from lightly.loss import NTXentLoss

        candidates["lightly"] = NTXentLoss(temperature=0.1)
    rows = []
    for pairs in PAIRS:
        here = {name: loss for name, loss in candidates.items() if name == "ours" or pairs <= MOST_LIGHTLY}
        times: dict[str, list[float]] = {name: [] for name in here}
        memory = dict.fromkeys(here, 0.0)
        for turn in range((1 if pairs > 4096 else max(1, min(repeats, 3))) + 1):  # the first one warms up
            for name, loss in here.items():
                if pairs > 4096 and name == "lightly" and not turn:
                    continue  # its matrices take seconds to fill, warm or not
                z = [torch.randn(pairs, WIDTH, requires_grad=True) for _ in range(2)]
                seconds, megabytes = peak_memory(lambda loss=loss, z=z: loss(*z).backward())
                memory[name] = max(memory[name], megabytes)
                if turn:
                    times[name].append(seconds)
        what = f"NT-Xent, {pairs} pairs"
        for name in here:
            rows.append(make_row(f"{what}: {name}", statistics.median(times[name]), "s"))
            limit = MEMORY.get(pairs) if name == "ours" else None
            met = memory[name] <= limit if limit else None
            target = f"at most {limit} MB" if limit else "-"
            rows.append(make_row(f"{what}: {name}, above the inputs", memory[name], "MB", "-", target, met))
        if "lightly" in here:
            ratio = statistics.median(a / b for a, b in zip(times["ours"], times["lightly"]))
            met, target = (ratio <= 0.5, "at most 0.5 x") if pairs == 8192 else (None, "-")
            rows.append(make_row(f"{what}: time of ours", ratio, "x", "lightly", target, met))
    return rows


# steps


def mae_rows(precision: str, repeats: int) -> list[dict[str, Any]]:
    """Compare MAE's step with lightly's and with the matrix rate, with and without its options."""
    from lit_vision.methods.mae.mae import MAE

    dtype, turns = DTYPES[precision], max(1, min(repeats, 3))
    torch.manual_seed(0)
    ours = MAE(*VIT, **DECODER)
    side = ours.grid[0] * ours.patch_size
    images = torch.randn(BATCH, 3, side, side)
    batch = {"images": images[:, None], "key": torch.arange(3 * BATCH).view(BATCH, 3)}
    candidates = {"ours": training_step(ours, lambda: ours.batch_loss(batch, 0), dtype)}
    replay, share_of_layers = layer_products(candidates["ours"])
    candidates["products"] = replay
    if _lightly.is_installed():
        theirs = _lightly.mae(*VIT, DECODER)
        # AdamW as its examples have it
        candidates["lightly"] = training_step(theirs, lambda: theirs(images), dtype, fused=False)
    times = take_turns(candidates, turns)
    what = f"MAE {NAME}, {precision}, batch {BATCH}"
    rows = [_rate(f"{what}: {name}", times[name]) for name in ("ours", "lightly") if name in times]
    if "lightly" in times:
        least = {"fp32": 1.1, "bf16": 1.25}[precision]
        rows.append(_ratio(f"{what}: speed of ours", times["ours"], times["lightly"], "lightly's eager MAE", least))
    rows.append(_share(what, times, share_of_layers, {"fp32": 0.8, "bf16": 0.68}[precision]))
    _profile(what, candidates["ours"])
    del candidates
    theirs = None
    compiled = COMPILED and (shutil.which("g++") or shutil.which("clang++"))
    options = {"checkpointing": {"checkpointing": True}} | ({"compiled": {"compile": True}} if compiled else {})
    for name, option in options.items():
        other = MAE(*VIT, **DECODER, **option)
        pair = {
            "ours": training_step(ours, lambda: ours.batch_loss(batch, 0), dtype),
            name: training_step(other, lambda other=other: other.batch_loss(batch, 0), dtype),
        }
        if name == "compiled":
            pair["products"] = replay
        times = take_turns(pair, turns)
        rows.append(_ratio(f"{what}: speed, {name}", times[name], times["ours"], "without"))
        if name == "compiled":
            rows.append(_share(what, {**times, "ours": times[name]}, share_of_layers, suffix=f", {name}"))
    return rows


def simclr_rows(precision: str, repeats: int) -> list[dict[str, Any]]:
    """Compare SimCLR's step, ResNet-50 and a head of 2 layers with batch norm, with lightly's example modules."""
    from lit_vision.methods.simclr.simclr import SimCLR

    views, dtype = torch.rand(IMAGE_PAIRS, 2, 3, SIDE, SIDE), DTYPES[precision]
    torch.manual_seed(0)
    ours = SimCLR(*RESNET, projection_batch_norm=True)
    candidates = {"ours": training_step(ours, lambda: ours.loss(views), dtype)}
    candidates["products"], share_of_layers = layer_products(candidates["ours"])
    if _lightly.is_installed():
        theirs = _lightly.simclr(*RESNET, ours.backbone.width)
        candidates["lightly"] = training_step(theirs, lambda: theirs(views), dtype, fused=False)
    times = take_turns(candidates, max(1, min(repeats, 3)))
    what = f"SimCLR ResNet-50, {precision}, {IMAGE_PAIRS} pairs"
    named = [name for name in ("ours", "lightly") if name in times]
    rows = [_rate(f"{what}: {name}", times[name], IMAGE_PAIRS, "pairs/s") for name in named]
    if "lightly" in times:
        rows.append(_ratio(f"{what}: speed of ours", times["ours"], times["lightly"], "lightly's modules"))
    rows.append(_share(what, times, share_of_layers))
    return rows


def _profile(what: str, step: Step) -> None:
    """Append the operators that take most of a step to the profile's file."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step()
    table = profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=16, max_name_column_width=48)
    PROFILE.parent.mkdir(parents=True, exist_ok=True)
    with PROFILE.open("a", encoding="utf-8") as file:
        file.write(f"{what}\n{table}\n")


def _rate(what: str, seconds: list[float], images: int | None = None, unit: str = "images/s") -> dict[str, Any]:
    return make_row(what, (images or BATCH) / statistics.median(seconds), unit)


def _ratio(
    what: str, ours: list[float], theirs: list[float], against: str, least: float | None = None
) -> dict[str, Any]:
    """Return a row: how many times faster the first is, within a turn."""
    ratio = statistics.median(b / a for a, b in zip(ours, theirs))
    if least is None:
        return make_row(what, ratio, "x", against)
    return make_row(what, ratio, "x", against, f"at least {least} x", ratio >= least)


def _share(
    what: str, times: dict[str, list[float]], share_of_layers: float, least: float | None = None, suffix: str = ""
) -> dict[str, Any]:
    """Return a row: the share of the matrix rate, with the multiply-adds that the products leave out (attention)."""
    share = statistics.median(b / a for a, b in zip(times["ours"], times["products"])) / share_of_layers
    met, target = (None, "-") if least is None else (share >= least, f"at least {least}")
    return make_row(
        f"{what}: share of the matrix rate{suffix}", share, "", "its layers' products by themselves", target, met
    )
