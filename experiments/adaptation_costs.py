"""What each protocol of the adaptation table costs: parameters, bytes of a training step, and its time against full fine-tuning's."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from adaptation_protocols import INIT, PROTOCOLS

LABELS = 800  # labels of the step's batch; only its size matters
TURNS = 15  # of the timing, after one that warms up


def costs(images: Any, preset: Any, weights: Path) -> dict[str, dict[str, float]]:
    """By protocol: `parameters` that train and their `share`, `bytes` of a step, `activation_bytes`, `step_time` (1 is full fine-tuning).

    Bytes: of the weights, of the gradients and AdamW's two moments of what trains, and of the tensors kept for the backward pass (each
    storage once, the weights themselves apart). The same on every machine, where a process's peak is not. Time: forward, backward and
    AdamW on one batch; the protocols take turns and the ratio is taken within a turn, so that a busy machine slows all of them.

    Args:
        images: from `lit_vision.study.images.read_images`.
        preset: the study's, with this table's protocols.
        weights: the encoder that all begin from.
    """
    built = {protocol: _build(protocol, images, preset, weights) for protocol in PROTOCOLS}
    steps = {protocol: _step(*one) for protocol, one in built.items()}
    times = step_times(steps, TURNS)
    return {protocol: {**_bytes(*built[protocol]), "step_time": times[protocol]} for protocol in PROTOCOLS}


def protocol_of(name: str) -> str:
    """The name under which the recipe holds a protocol's changes; the probe is costed as a head on a frozen body."""
    return name if PROTOCOLS[name] is not None else "finetune"


def step_times(steps: dict[str, Callable[[], None]], turns: int, against: str = "finetune") -> dict[str, float]:
    """Median over turns of each step's seconds over those of `against` in the same turn; a first turn warms up and does not count."""
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


def _build(protocol: str, images: Any, preset: Any, weights: Path) -> tuple[Any, dict[str, torch.Tensor]]:
    """The protocol's module in training mode, and a full batch on it."""
    from lit_vision.study.training import classification

    rows = images.subset(min(LABELS, int((images.labels >= 0).sum())), 0)
    module, data = classification(INIT, images, rows, preset, 0, weights, protocol=protocol_of(protocol))
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
    own = {p.untyped_storage().data_ptr() for p in (*module.parameters(), *module.buffers())}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = module.training_step(batch, 0)
        activations = sum(kept.values())
    loss.backward()
    trained = sum(p.numel() for p in _trained(module))
    weights = sum(p.numel() * p.element_size() for p in module.parameters())
    return {
        "parameters": trained,
        "share": trained / sum(p.numel() for p in module.parameters()),
        "bytes": weights + 3 * 4 * trained + activations,
        "activation_bytes": activations,
    }
