"""Plan of a study: epochs and seeds that fit the time budget, from measured steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lit_vision.data.splits import evenly_spaced
from lit_vision.io.atomic import write_json
from lit_vision.results.schema import SCHEMA
from lit_vision.study.cells import read_record
from lit_vision.study.images import StudyImages
from lit_vision.study.presets import SCRATCH, TIMM, StudyPreset
from lit_vision.study.training import TrainingCost, classification, measure, pretraining

MEASURE_SHARE = 0.1  # of the budget: for measuring steps
PRETRAIN_SHARE = 0.4  # of the time for trainings
INIT_SHARE = {"simclr": 0.7, "mae": 0.3, "lejepa": 0.7}  # of the time for pre-training, relative to the others that run
REPORT_SECONDS = 25.0
LATE = 1.05  # of the budget: after this time further seeds are left out
FEWEST_STEPS = 20  # of a fine-tuning; one with fewer is not worth running
GROWTH = 0.25  # steps grow with this power of the number of labels

Costs = dict[Any, TrainingCost]  # by init (pre-training) or by (network, number of labels)


@dataclass
class StudyPlan:
    """Epochs and seeds of every training; stored in plan.json, so that a continued study trains by the same plan.

    Attributes:
        labels: numbers of labels.
        seeds: by number of labels.
        pretrain: epochs of pre-training, by init.
        tune: epochs from pre-trained weights, by number of labels.
        scratch: epochs from random weights, by number of labels.
        seconds: expected time of each pre-training, by init, of all trainings on labels ("labels"), and by number of
            labels.
        max_seeds: at most this many seeds of trainings on labels, by (costly) init.
        fixed: numbers of labels whose epochs the user has set; their trainings are never left out.
        pretrain_images: images that a pre-training sees, by init, if the time is too short for all of them.
        omitted: what was left out because the budget is too short, one sentence each.
        protocols: how networks are trained on labels, out of `presets.ON_LABELS`.
        trained_seeds: at most this many seeds of trainings, by number of labels, if the time got short; protocols that
            train no network run for all seeds.
    """

    labels: list[int]
    seeds: dict[int, int]
    pretrain: dict[str, int] = field(default_factory=dict)
    tune: dict[int, int] = field(default_factory=dict)
    scratch: dict[int, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    max_seeds: dict[str, int] = field(default_factory=dict)
    fixed: list[int] = field(default_factory=list)
    pretrain_images: dict[str, int] = field(default_factory=dict)
    omitted: list[str] = field(default_factory=list)
    protocols: list[str] = field(default_factory=lambda: ["finetune"])
    trained_seeds: dict[int, int] = field(default_factory=dict)

    def seeds_of(self, init: str, count: int) -> int:
        """Return how many seeds an init is trained for at a number of labels."""
        return min(self.most_seeds(count), self.max_seeds.get(init, self.seeds[count]))

    def most_seeds(self, count: int) -> int:
        """Return the largest number of seeds of any training at a number of labels."""
        return min(self.seeds[count], self.trained_seeds.get(count, self.seeds[count]))

    def save(self, path: Path, inputs: str) -> None:
        """Write plan.json with a hash of what the plan depends on."""
        write_json(path, {"schema": SCHEMA, **asdict(self), "inputs": inputs})

    @staticmethod
    def load(path: Path, inputs: str) -> StudyPlan | None:
        """Return the stored plan if it was made for the same inputs, else None."""
        record = read_record(path)
        if record.pop("inputs", None) != inputs:
            return None
        del record["schema"]
        for key in ("seeds", "tune", "scratch", "trained_seeds"):  # JSON keys are text
            record[key] = {int(k): v for k, v in record[key].items()}
        return StudyPlan(**record)


def measure_all(
    images: StudyImages, source: StudyImages, preset: StudyPreset, inits: list[str], labels: list[int], seconds: float
) -> Costs:
    """Measure the cost of each pre-training and of each training on labels by running a few steps of it.

    All measurements together take about `seconds`, or longer if four steps of each need more.
    """
    costs: Costs = {}
    pretrained = [init for init in inits if init in INIT_SHARE]
    on_labels = [*SCRATCH, *(init for init in inits if init.startswith(TIMM))]
    limit = seconds / (len(pretrained) + len(labels) * len(on_labels))
    for init in pretrained:
        module, data = pretraining(init, source, preset, seed=0)
        data.rows = np.arange(min(len(source.pool), 3 * data.batch_size))
        data.batches.n = len(data.rows)
        costs[init] = measure(module, data, limit=limit)
    for count in labels:
        labeled = np.flatnonzero(images.labels >= 0)  # any rows will do: there may be more classes than rows
        rows = labeled[evenly_spaced(len(labeled), min(count, 3 * preset.batch_size))]
        for init in on_labels:
            module, data = classification(init, images, rows, preset, 0, None)
            costs[preset.network(init).name, count] = measure(module, data, epochs=4, limit=limit)
    return costs


def plan_pretraining(plan: StudyPlan, costs: Costs, images: StudyImages, preset: StudyPreset, seconds: float) -> None:
    """Divide `seconds` among the pre-trainings that have no epochs yet."""
    missing = [init for init in INIT_SHARE if init in costs and init not in plan.pretrain]
    total = sum(INIT_SHARE[init] for init in missing)
    for init in missing:
        batch = min(len(images.pool), getattr(preset, init)["batch_size"])
        steps = len(images.pool) // batch
        share = seconds * INIT_SHARE[init] / total
        if costs[init].seconds(1, steps) > share:  # not even one epoch
            steps = min(steps, max(1, int((share - costs[init].setup) / costs[init].step)))
            plan.pretrain_images[init] = steps * batch
            plan.omitted.append(f"{init} is pre-trained on {steps * batch} of the {len(images.pool)} images")
        plan.pretrain[init] = costs[init].epochs(share, steps)
        plan.seconds[init] = costs[init].seconds(plan.pretrain[init], steps)


def plan_labels(plan: StudyPlan, costs: Costs, preset: StudyPreset, inits: list[str], seconds: float) -> None:
    """Divide `seconds` among the trainings on labels; their steps grow slowly with the number of labels.

    A training from scratch gets `scratch_factor` times the steps of a fine-tuning. If the time is too short for
    FEWEST_STEPS of each, seeds are left out, those of the costly networks first.
    """
    missing = [count for count in plan.labels if count not in plan.tune]
    if not missing:
        return

    def cost(base: float, counts: Sequence[int] = missing) -> float:
        total = 0.0
        for count in counts:
            per_epoch = preset.steps_per_epoch(count)
            for init in [*inits, *SCRATCH]:
                factor = preset.scratch_factor if init in SCRATCH else 1
                epochs = max(1, round(factor * _steps(base, count, plan) / per_epoch))
                training_cost = costs[preset.network(init).name, count]
                trainings = plan.seeds_of(init, count) * len(preset.protocols(init, plan.protocols))
                total += trainings * training_cost.seconds(epochs, per_epoch)
        return total

    for reduce in _reductions(plan, preset, inits):
        if cost(FEWEST_STEPS) <= seconds:
            break
        plan.omitted.append(reduce())
    low, high = float(FEWEST_STEPS), 1e6  # bisection of the steps at the fewest labels
    for _ in range(50):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if cost(middle) <= seconds else (low, middle)
    for count in missing:
        per_epoch = preset.steps_per_epoch(count)
        steps = _steps(low, count, plan)
        plan.tune[count] = max(1, round(steps / per_epoch))
        plan.scratch[count] = max(1, round(preset.scratch_factor * steps / per_epoch))
        plan.seconds[str(count)] = cost(low, [count])
    plan.seconds["labels"] = cost(low)


def _reductions(plan: StudyPlan, preset: StudyPreset, inits: list[str]) -> Iterator[Callable[[], str]]:
    """Yield functions that leave trainings out of the plan, the least important first, and return a sentence."""
    costly = [init for init in (*SCRATCH, *inits) if preset.network(init).plain_vit]
    sentences = {3: "at most 3 trainings of a kind on labels", 1: "one training of a kind on labels"}
    one = f"one seed of {', '.join(costly)}"

    def one_seed() -> str:
        plan.max_seeds.update(dict.fromkeys(costly, 1))
        return one

    def none() -> str:
        plan.max_seeds.update(dict.fromkeys(costly, 0))
        _forget(one)
        return f"no training of {', '.join(costly)} on labels"

    def at_most(most: int) -> str:
        plan.trained_seeds = {count: min(most, plan.most_seeds(count)) for count in plan.seeds}
        _forget(sentences[3])
        return sentences[most]

    def _forget(sentence: str) -> None:  # a smaller reduction that a larger one includes
        plan.omitted[:] = [other for other in plan.omitted if other != sentence]

    if any(plan.seeds_of(init, count) > 1 for init in costly for count in plan.labels):
        yield one_seed
    if any(plan.seeds_of(init, count) for init in costly for count in plan.labels):
        yield none
    for most in (3, 1):
        if max(map(plan.most_seeds, plan.seeds)) > most:
            yield partial(at_most, most)


def _steps(base: float, count: int, plan: StudyPlan) -> float:
    return base * float((count / min(plan.labels)) ** GROWTH)
