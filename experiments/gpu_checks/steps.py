"""Training steps of MAE and SimCLR on one GPU, beside the modules of lightly and transformers.

Every step is forward, backward and AdamW in mixed bf16, on images that are already on the device. The candidates of a
comparison take turns in one process. Peak memory is that of a step above weights and optimizer state. The share of the
matrix rate is the step's multiply-adds a second, divided by those of its layers' products run alone (a convolution's as
the product of its unfolded patches).
"""

from __future__ import annotations

import gc
import importlib.util
import shutil
import statistics
import warnings
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from benchmarks import _lightly
from benchmarks._matrix_products import MatrixProductCounter, random_operand
from benchmarks._steps import Step, peak_memory, seconds_of, synchronize, take_turns, training_step
from gpu_checks.report import Report
from torch import nn

from lit_vision.methods.mae.mae import MAE
from lit_vision.methods.simclr.simclr import SimCLR

BF16 = torch.bfloat16
OURS = "ours"
CPU_COMPILE_SECONDS = 240
PRODUCT_KERNELS = ("gemm", "nvjet", "cutlass", "cudnn", "conv", "fprop", "dgrad", "wgrad")  # parts of kernels' names
ATTENTION_KERNELS = ("flash", "fmha", "attention", "sdpa")


@dataclass(frozen=True)
class Sizes:
    """Sizes of the measurements on one kind of device."""

    matrix: int  # rows and columns of the square product
    mae: str  # name of the model in the rows
    vit: tuple[str, dict[str, Any]]
    decoder: dict[str, Any]
    images: int
    simclr: str
    resnet: tuple[str, dict[str, Any]]
    pairs: int  # of images
    side: int  # of the images of SimCLR
    turns: int
    steps: int  # of one candidate in a turn


GPU = Sizes(
    matrix=8192,
    mae="MAE ViT-B/16",
    vit=("vit_base_patch16_224", {}),
    decoder={"decoder_width": 512, "decoder_depth": 8, "decoder_heads": 16},
    images=256,
    simclr="SimCLR ResNet-50",
    resnet=("resnet50", {}),
    pairs=128,
    side=224,
    turns=4,
    steps=6,
)
CPU = Sizes(
    matrix=256,
    mae="MAE toy ViT",
    vit=("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2}),
    decoder={"decoder_width": 32, "decoder_depth": 2, "decoder_heads": 2},
    images=8,
    simclr="SimCLR toy ResNet",
    resnet=("resnet18", {"layers": (1, 1, 1, 1), "channels": (8, 8, 16, 16)}),
    pairs=4,
    side=32,
    turns=2,
    steps=1,
)


def steps(report: Report) -> None:
    """Measure the steps of MAE, eager and compiled, and of SimCLR."""
    warnings.filterwarnings("ignore", module="lightly")
    sizes = GPU if report.on_gpu else CPU
    n = sizes.matrix
    with report.attempt("matrix rate"):
        square = torch.randn(n, n, device=report.device, dtype=BF16)
        seconds = take_turns({"product": lambda: torch.mm(square, square)}, 3, steps=10, warm_up=3)["product"]
        report.add(f"bf16 product of two {n} x {n} matrices", 2 * n**3 / statistics.median(seconds) / 1e12, "TFLOP/s")
    with report.attempt(sizes.mae):
        _mae(report, sizes)
    _free()
    with report.attempt(sizes.simclr):
        _simclr(report, sizes)
    _free()
    with report.attempt(f"{sizes.mae}, compiled"):  # last: it may take minutes
        _compiled_mae(report, sizes)


def _mae(report: Report, sizes: Sizes) -> None:
    ours, batch = _our_mae(report, sizes)
    images = batch["images"][:, 0]
    candidates: dict[str, Step] = {OURS: training_step(ours, lambda: ours.batch_loss(batch, 0), BF16)}
    if _lightly.is_installed():
        lightly = _lightly.mae(*sizes.vit, sizes.decoder).to(report.device)
        candidates["lightly"] = training_step(lightly, lambda: lightly(images), BF16, fused=False)
    else:
        report.leave_out(f"{sizes.mae}, lightly", "lightly is not installed")
    if importlib.util.find_spec("transformers"):
        with report.attempt(f"{sizes.mae}, transformers"):
            other = _transformers_mae(sizes, images.shape[-1], ours.patch_size).to(report.device)
            candidates["transformers"] = training_step(
                other, lambda: other(pixel_values=images).loss, BF16, fused=False
            )
    else:
        report.leave_out(f"{sizes.mae}, transformers", "transformers is not installed")
    _measure(report, sizes.mae, candidates, sizes, sizes.images, "images/s")


def _compiled_mae(report: Report, sizes: Sizes) -> None:
    """Compare the compiled step of MAE with the eager one."""
    what = f"{sizes.mae}, compiled"
    if not report.on_gpu and report.seconds_left < CPU_COMPILE_SECONDS:
        report.leave_out(what, f"compiling on a CPU may take {CPU_COMPILE_SECONDS} s; give more --minutes")
        return
    if not report.on_gpu and not (shutil.which("g++") or shutil.which("clang++")):
        report.leave_out(what, "there is no C++ compiler")
        return
    candidates: dict[str, Step] = {}
    for name, compiled in ((OURS, False), ("compiled", True)):
        model, batch = _our_mae(report, sizes, compiled)
        candidates[name] = training_step(model, partial(model.batch_loss, batch, 0), BF16)
    report.add(f"{what}: its first step", seconds_of(candidates["compiled"]), "s")
    _measure(report, sizes.mae, candidates, sizes, sizes.images, "images/s")


def _our_mae(report: Report, sizes: Sizes, compiled: bool = False) -> tuple[MAE, dict[str, torch.Tensor]]:
    """Return the model and a batch of normalized images."""
    torch.manual_seed(0)
    model = MAE(*sizes.vit, **sizes.decoder, compile=compiled).to(report.device)
    side = model.grid[0] * model.patch_size
    images = torch.randn(sizes.images, 1, 3, side, side, device=report.device)
    return model, {"images": images, "key": torch.arange(3 * sizes.images, device=report.device).view(-1, 3)}


def _transformers_mae(sizes: Sizes, side: int, patch: int) -> nn.Module:
    """Build transformers' MAE with the shapes of ours."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    vit, decoder = sizes.vit[1], sizes.decoder
    width = vit.get("embed_dim", 768)
    return ViTMAEForPreTraining(
        ViTMAEConfig(
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=vit.get("depth", 12),
            num_attention_heads=vit.get("num_heads", 12),
            image_size=side,
            patch_size=patch,
            decoder_hidden_size=decoder["decoder_width"],
            decoder_intermediate_size=4 * decoder["decoder_width"],
            decoder_num_hidden_layers=decoder["decoder_depth"],
            decoder_num_attention_heads=decoder["decoder_heads"],
            mask_ratio=0.75,
            norm_pix_loss=True,
        )
    ).train()


def _simclr(report: Report, sizes: Sizes) -> None:
    torch.manual_seed(0)
    views = torch.rand(sizes.pairs, 2, 3, sizes.side, sizes.side, device=report.device)
    ours = SimCLR(*sizes.resnet, projection_batch_norm=True).to(report.device)
    candidates: dict[str, Step] = {OURS: training_step(ours, lambda: ours.loss(views), BF16)}
    if _lightly.is_installed():
        lightly = _lightly.simclr(*sizes.resnet, ours.backbone.width).to(report.device)
        candidates["lightly"] = training_step(lightly, lambda: lightly(views), BF16, fused=False)
    else:
        report.leave_out(f"{sizes.simclr}, lightly", "lightly is not installed")
    _measure(report, sizes.simclr, candidates, sizes, sizes.pairs, "pairs/s")


def _measure(report: Report, what: str, candidates: dict[str, Step], sizes: Sizes, images: int, unit: str) -> None:
    """Add rates, ratios, peak memory and shares of the matrix rate of some candidates.

    Args:
        report: gets the rows; its facts get the best rate of ours.
        what: the model.
        candidates: steps by name; "ours", which is eager, and "compiled" run the same products.
        sizes: how many turns.
        images: of a step.
        unit: of the rate.
    """
    times = take_turns(candidates, sizes.turns, sizes.steps, warm_up=3 if report.on_gpu else 1)
    key, what = what.split()[0].lower(), f"{what}, batch {images}"
    if "compiled" in candidates:
        what += ", beside compiled"
    adds, rate = _products_alone(candidates[OURS])
    report.add(f"{what}: layers' products alone", 2 * rate / 1e12, "TFLOP/s")
    for name, seconds in times.items():
        middle = statistics.median(seconds)
        report.add(f"{what}, {name}", images / middle, unit)
        report.add(f"{what}, {name}: peak memory", peak_memory(candidates[name], report.device)[1], "MB")
        if name in (OURS, "compiled"):
            report.add(f"{what}, {name}: share of the matrix rate", adds / middle / rate, "", "its products alone")
            if report.on_gpu:
                with report.attempt(f"{what}, {name}: kernels"):
                    _add_kernel_shares(report, f"{what}, {name}", candidates[name], middle)
            rates = report.facts.setdefault("images_per_second", {})
            rates[key] = max(rates.get(key, 0.0), images / middle)
        if name != OURS:
            faster, slower = (name, OURS) if name == "compiled" else (OURS, name)
            ratio = statistics.median(b / a for a, b in zip(times[faster], times[slower]))
            report.add(f"{what}: speed of {faster}", ratio, "x", slower)
    report.write()


def _add_kernel_shares(report: Report, what: str, step: Step, seconds: float) -> None:
    """Add the GPU's time in a step's kernels of each kind, of the step's seconds; in the rest of them it waits."""
    kinds = {"matrix products and convolutions": 0.0, "attention kernels": 0.0, "other kernels": 0.0}
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        step()
        synchronize()
    for event in profiler.key_averages():
        if event.device_type != torch.autograd.DeviceType.CUDA or getattr(event, "is_user_annotation", False):
            continue
        name = event.key.lower()
        if any(part in name for part in ATTENTION_KERNELS):
            kind = "attention kernels"
        elif any(part in name for part in PRODUCT_KERNELS):
            kind = "matrix products and convolutions"
        else:
            kind = "other kernels"
        kinds[kind] += event.self_device_time_total / 1e6
    for kind, busy in kinds.items():
        report.add(f"{what}: {kind}", busy / seconds, "", "the step's time")


def _products_alone(step: Step) -> tuple[float, float]:
    """Return the multiply-adds of a step, attention included, and those a second of its layers' products run alone.

    Each product is timed by itself: the operands of all of them together may not fit the device.
    """
    with MatrixProductCounter() as counter:
        step()
    device = "cuda" if torch.cuda.is_initialized() else "cpu"
    seconds = 0.0
    for (a, b), count in counter.layers.items():
        x, y = random_operand(*a, device), random_operand(*b, device)
        product = partial(torch.mm, x, y)
        for _ in range(2):
            product()
        seconds += count * seconds_of(product, repeats=5)
    adds = counter.multiply_adds()
    return adds + counter.attention, adds / seconds


def _free() -> None:
    """Return the memory of the models that are gone to the device."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
