"""Measure the speed of a recipe's data loader and of its training step, and suggest a number of workers."""

from __future__ import annotations

import math
import statistics
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import yaml

from lit_vision.errors import UserError
from lit_vision.io.processes import cores


def compare_loader_to_step(recipe: Path, root: Path, batches: int = 4) -> dict[str, Any]:
    """Time a recipe's data loading in this process and its training step on its device.

    A step is forward and backward, without the optimizer.

    Args:
        recipe: the YAML file; its `data.root` is replaced.
        root: the folder.
        batches: number of batches that are timed; the median counts.

    Returns:
        {recipe, images_per_second_per_worker, images_per_second_step, device, workers, words (a summary, one line)}.

    Raises:
        UserError: the recipe lacks a model or data, or cannot be built.
    """
    settings = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    data = _build(recipe, settings, "data", root=str(root), num_workers=0)
    model = _build(recipe, settings, "model")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.to(device).train()
    loader = iter(data.train_dataloader())
    waits, steps = [], []
    for _ in range(batches + 1):
        start = time.perf_counter()
        batch = next(loader, None)
        if batch is None:
            break
        waits.append(time.perf_counter() - start)
        start = time.perf_counter()
        batch = model.on_after_batch_transfer({k: v.to(device) for k, v in batch.items()}, 0)
        loss = model.training_step(batch, 0)
        (loss["loss"] if isinstance(loss, dict) else loss).backward()
        if device == "cuda":
            torch.cuda.synchronize()
        steps.append(time.perf_counter() - start)
    wait, step = (statistics.median(times[1:] or times) for times in (waits, steps))  # the first one warms up
    rate, wanted = data.batch_size / wait, data.batch_size / step
    workers = suggested_workers(rate, wanted, cores())
    summary = (
        f"{recipe.name}: one worker makes {rate:.0f} images/s, a training step on {device} takes {wanted:.0f}/s: "
        f"data.num_workers {workers}"
    )
    if rate * max(1, workers) < wanted:
        summary += f"; with {cores()} cores it will wait for images: lit-vision pack makes them come faster"
    return {
        "recipe": recipe.name,
        "images_per_second_per_worker": round(rate, 1),
        "images_per_second_step": round(wanted, 1),
        "device": device,
        "workers": workers,
        "words": summary,  # an older key of doctor.json
    }


def suggested_workers(rate: float, wanted: float, cores: int) -> int:
    """Return the number of workers that keep the step busy with a tenth to spare, at least 1, at most the cores.

    Args:
        rate: images per second of one worker.
        wanted: images per second that the step takes.
        cores: of this process.
    """
    return max(1, min(cores, math.ceil(1.1 * wanted / rate)))


def _build(recipe: Path, settings: Any, part: str, **changes: Any) -> Any:
    """Build the object of one part of a recipe (model or data)."""
    try:
        module, _, name = settings[part]["class_path"].rpartition(".")
        return getattr(import_module(module), name)(**{**settings[part].get("init_args", {}), **changes})
    except (KeyError, TypeError, AttributeError, ImportError) as error:
        raise UserError(
            f"--recipe {recipe}: its {part} cannot be built ({error}); correct it until lit-vision fit accepts it"
        ) from None
