"""Costs of each protocol of the adaptation table: parameters, bytes of a training step, time against fine-tuning."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from adaptation_protocols import INIT, PROTOCOLS

if TYPE_CHECKING:
    from lit_vision.study.images import StudyImages
    from lit_vision.study.presets import StudyPreset

LABELS = 800  # labels of the step's batch; only its size matters
TURNS = 15  # of the timing, after one that warms up


def costs(images: StudyImages, preset: StudyPreset, weights: Path) -> dict[str, dict[str, float]]:
    """Measure every protocol: `parameters` trained and their `share`, `bytes`, `activation_bytes`, `step_time`.

    Bytes of a step: of the weights, of the gradients and AdamW's two moments of what trains, and of the tensors saved
    for the backward pass (each storage once, without the weights). The same on every machine, where a process's peak is
    not. Step time, 1 for full fine-tuning: forward, backward and AdamW on one batch; the protocols take turns
    and the ratio is taken within a turn, so that a busy machine slows all of them.

    Args:
        images: from `lit_vision.study.images.read_images`.
        preset: the study's, with this table's protocols.
        weights: the encoder that all start from.

    Returns:
        {protocol: {name: value}}.
    """
    built = {protocol: _build(protocol, images, preset, weights) for protocol in PROTOCOLS}
    steps = {protocol: _step(*one) for protocol, one in built.items()}
    times = step_times(steps, TURNS)
    return {protocol: {**_bytes(*built[protocol]), "step_time": times[protocol]} for protocol in PROTOCOLS}


def preset_protocol(name: str) -> str:
    """Return the name that a protocol has in the preset; the linear probe is measured as a head on a frozen body."""
    return name if PROTOCOLS[name] is not None else "finetune"


def step_times(steps: dict[str, Callable[[], None]], turns: int, against: str = "finetune") -> dict[str, float]:
    """Return the median over turns of each step's seconds divided by those of `against` in the same turn.

    A first turn warms up and does not count.
    """
    ratios: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(turns + 1):
        seconds = {name: _seconds(step) for name, step in steps.items()}
        for name in ratios if turn else ():
            ratios[name].append(seconds[name] / seconds[against])
    return {name: round(statistics.median(found), 3) for name, found in ratios.items()}


def _seconds(step: Callable[[], None]) -> float:
    begin = time.perf_counter()
    step()
    return time.perf_counter() - begin


def _build(
    protocol: str, images: StudyImages, preset: StudyPreset, weights: Path
) -> tuple[Any, dict[str, torch.Tensor]]:
    """Return the protocol's module in training mode, and a full batch for it."""
    from lit_vision.study.training import classification

    rows = images.subset(min(LABELS, int((images.labels >= 0).sum())), 0)
    module, data = classification(INIT, images, rows, preset, 0, weights, protocol=preset_protocol(protocol))
    if PROTOCOLS[protocol] is None:
        for parameter in module.backbone.parameters():
            parameter.requires_grad_(False)
    module.log = lambda *args, **kwargs: None
    return module, module.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)


def _trained(module: torch.nn.Module) -> Iterable[torch.nn.Parameter]:
    return [p for p in module.parameters() if p.requires_grad]


def _step(module: Any, batch: dict[str, torch.Tensor]) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(_trained(module), lr=0.0, fused=True)

    def run() -> None:
        module.training_step(batch, 0).backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def _bytes(module: Any, batch: dict[str, torch.Tensor]) -> dict[str, float]:
    model_storages = {p.untyped_storage().data_ptr() for p in (*module.parameters(), *module.buffers())}
    saved: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in model_storages:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = module.training_step(batch, 0)
        activations = sum(saved.values())
    loss.backward()
    trained = sum(p.numel() for p in _trained(module))
    weights = sum(p.numel() * p.element_size() for p in module.parameters())
    return {
        "parameters": trained,
        "share": trained / sum(p.numel() for p in module.parameters()),
        "bytes": weights + 3 * 4 * trained + activations,
        "activation_bytes": activations,
    }
