"""Costs of a study's trainings: seconds, measured by a few steps of each, and multiply-adds, counted."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lit_vision.backbones.backbone import Backbone
from lit_vision.data.splits import evenly_spaced
from lit_vision.evaluation.features import evaluation_mode
from lit_vision.runs.multiply_adds import CONVOLUTION_BACKWARD
from lit_vision.study import training
from lit_vision.study.images import StudyImages
from lit_vision.study.plan import pretraining_name
from lit_vision.study.presets import SCRATCH, StudyPreset, method_of
from lit_vision.study.training_data import StudyData

MEASURED_IMAGES = 32  # of a step that is measured
FROZEN_SIDES = (192, 160, 128, 96)  # pixels, of frozen features where the time does not allow the best
COUNTED_IMAGES = 4  # of a step that is counted: batch norm and contrastive losses need more than one


def seeing_name(init: str) -> str:
    """Return the name of an init's frozen features among the costs."""
    return f"see {init}"


def network_key(init: str, preset: StudyPreset) -> str:
    """Return a text that is the same for inits whose trainings on labels cost the same."""
    network = preset.network(init)
    return repr((network.backbone, sorted(network.args.items()), preset.side(init)))


def measure_trainings(
    images: StudyImages,
    source: StudyImages,
    preset: StudyPreset,
    on_labels: Sequence[str],
    pretrained: Sequence[str],
    labels: int,
    seconds: float,
    log: Callable[[str], None],
) -> dict[str, tuple[float, float]]:
    """Return (seconds once, seconds of an image) of trainings, by init (on labels) and `pretraining_name`.

    Args:
        images: to train on labels.
        source: to pre-train on.
        preset: of the study.
        on_labels: inits to measure trainings on labels of; of those with the same network one is measured.
        pretrained: inits to measure the pre-training of.
        labels: at which the trainings are measured, at most MEASURED_IMAGES.
        seconds: of all measurements, about; a few steps of each are run in any case.
        log: prints a line of progress.
    """
    networks = dict.fromkeys(network_key(init, preset) for init in on_labels)
    number = len(networks) + len(pretrained)
    costs: dict[str, tuple[float, float]] = {}
    if number:
        log(f"measuring a few steps of {number} training{'s' * (number != 1)}")
    measured: dict[str, tuple[float, float]] = {}
    rows = evenly_spaced(images.labeled, min(labels, MEASURED_IMAGES))
    for init in on_labels:
        key = network_key(init, preset)
        if key not in measured:
            module, data = training.classification(init, images, rows, preset, 0, None)
            measured[key] = _measure(module, data, seconds / number)
        costs[init] = measured[key]
    for init in pretrained:
        pair = training.pretraining(init, source, preset, 0, MEASURED_IMAGES)
        costs[pretraining_name(init)] = _measure(*pair, seconds / number)
    return costs


def _measure(module: LightningModule, data: StudyData, limit: float) -> tuple[float, float]:
    cost = training.measure_step(module, data, limit)
    return cost.setup, (cost.step + cost.epoch / data.batches_per_epoch) / data.batch_size


def choose_frozen_side(
    load: Callable[[int], nn.Module], side: int, smallest: int, images: int, seconds: float, patch: int = 1
) -> int:
    """Return the side at which the features of a number of images take at most `seconds` on this machine.

    That is `side` if the time allows it, else the next smaller one of FROZEN_SIDES that it allows, down to `smallest`.
    A few images are seen at each side, the largest first, on the GPU if there is one.

    Args:
        load: returns the network for a side, images (B, 3, side, side) -> (B, D); a ViT is built for one side.
        side: at which the features are best, pixels.
        smallest: side, pixels.
        images: whose features are needed.
        seconds: for all of them.
        patch: side of a ViT's patches, pixels; a side is whole patches.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    between = (-(-other // patch) * patch for other in FROZEN_SIDES)
    sides = [side, *(other for other in between if other < side)]
    for tried in (other for other in sides if other > smallest):
        network = load(tried).to(device)
        with evaluation_mode(network), torch.no_grad():
            pixels = torch.zeros(COUNTED_IMAGES, 3, tried, tried, device=device)
            network(pixels).cpu()  # the first call chooses kernels
            begin = time.perf_counter()
            network(pixels).cpu()  # a GPU is waited for
            if images * (time.perf_counter() - begin) / len(pixels) <= seconds:
                return tried
    return smallest


def count_multiply_adds(
    images: StudyImages, source: StudyImages, preset: StudyPreset, inits: Sequence[str]
) -> dict[str, float]:
    """Return the multiply-adds of an image, which no machine and no clock changes.

    Args:
        images, source, preset: as for `measure_trainings`.
        inits: all that have a network.

    Returns:
        Of a training step's image, forward and backward, by init (on labels) and `pretraining_name`; of an image whose
        frozen features are taken, by `seeing_name`.
    """
    rows = evenly_spaced(images.labeled, COUNTED_IMAGES)
    counted: dict[str, float] = {}
    networks: dict[str, float] = {}
    for init in inits:
        key = network_key(init, preset)
        if key not in networks:
            networks[key] = training_multiply_adds(*training.classification(init, images, rows, preset, 0, None))
        counted[init] = networks[key]
        if init not in SCRATCH:
            network = preset.network(init)
            backbone = Backbone(network.backbone, **network.args)
            counted[seeing_name(init)] = forward_multiply_adds(backbone, preset.frozen_side(init))
        if method_of(init):
            pair = training.pretraining(init, source, preset, 0, COUNTED_IMAGES)
            counted[pretraining_name(init)] = training_multiply_adds(*pair)
    return counted


def training_multiply_adds(module: LightningModule, data: StudyData) -> float:
    """Return the multiply-adds of one training step, forward and backward, per image of the batch.

    One step of a few images is run and its matrix products and convolutions are counted (and on a GPU attention, whose
    kernels on a CPU torch does not count; `runs.multiply_adds.MultiplyAddCounter` does); what a step costs
    besides the number of images (LeJEPA's and SimCLR's losses grow with its square) is below a thousandth of it.

    Args:
        module: the method; it is trained by a step.
        data: its data, best of COUNTED_IMAGES images.
    """
    with FlopCounterMode(display=False, custom_mapping=CONVOLUTION_BACKWARD) as counter:
        training.train(module, data, seed=0, steps=1)
    return float(counter.get_total_flops()) / 2 / data.batch_size


def forward_multiply_adds(network: nn.Module, side: int, channels: int = 3) -> float:
    """Return the multiply-adds of one image's features.

    Args:
        network: images (B, channels, side, side) -> (B, D).
        side: of the image, pixels.
        channels: of the image.
    """
    with evaluation_mode(network), torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, channels, side, side))
    return float(counter.get_total_flops()) / 2
