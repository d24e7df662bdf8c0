"""What a study will run, for how long, and how it keeps to its budget: steps are measured, epochs follow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from lit_vision.io.atomic import write_json
from lit_vision.results.schema import SCHEMA
from lit_vision.study.cells import read_record
from lit_vision.study.images import StudyImages
from lit_vision.study.presets import TIMM, StudyPreset
from lit_vision.study.training import TrainingCost, classification, measure, pretraining

MEASURE_SHARE = 0.1  # of the budget, for measuring steps
PRETRAIN_SHARE = 0.4  # of the time that trainings get
INIT_SHARE = {"simclr": 0.7, "mae": 0.3}  # of the time that pre-training gets
SCRATCH = ("scratch-cnn", "scratch-vit")
REPORT_SECONDS = 25.0
LATE = 1.05  # of the budget: beyond it seeds are left out
FEWEST_STEPS = 20  # a fine-tuning of less says nothing
GROWTH = 0.25  # steps grow with this power of the number of labels


@dataclass
class StudyPlan:
    """Epochs of every training. Kept in plan.json, so that a study that goes on trains as it began.

    Attributes:
        labels: numbers of labels; seeds: how many seeds each gets; fewer: at most so many trainings for these (costly) starts.
        trained: at most so many trainings at a number of labels, where time got short; what trains no network keeps its seeds.
        pretrain: epochs by start.
        tune, scratch: epochs by number of labels, from pre-trained weights and from nothing.
        seconds: what each part was expected to take: pre-trainings by start, "labels" and each number of labels.
        fixed: numbers of labels whose epochs the person gave; these are never cut short.
        pool: images that a pre-training sees, by start, where the time does not reach for all of them.
        cut: what was left out because the budget is too short, one sentence each.
        protocols: how networks are trained on labels, out of `presets.ON_LABELS`.
    """

    labels: list[int]
    seeds: dict[int, int]
    pretrain: dict[str, int] = field(default_factory=dict)
    tune: dict[int, int] = field(default_factory=dict)
    scratch: dict[int, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    max_seeds: dict[str, int] = field(default_factory=dict)
    fixed: list[int] = field(default_factory=list)
    pool: dict[str, int] = field(default_factory=dict)
    cut: list[str] = field(default_factory=list)
    protocols: list[str] = field(default_factory=lambda: ["finetune"])
    trained: dict[int, int] = field(default_factory=dict)

    def seeds_of(self, init: str, count: int) -> int:
        """Seeds of a start's trainings at a number of labels."""
        return min(self.most_seeds(count), self.max_seeds.get(init, self.seeds[count]))

    def most_seeds(self, count: int) -> int:
        """Seeds of any training at a number of labels."""
        return min(self.seeds[count], self.trained.get(count, self.seeds[count]))

    def save(self, path: Path, inputs: str) -> None:
        """Write to plan.json, with a hash of what it was made for."""
        write_json(path, {"schema": SCHEMA, **asdict(self), "inputs": inputs})

    @staticmethod
    def load(path: Path, inputs: str) -> StudyPlan | None:
        """Return the stored plan if it was made for the same inputs, else None."""
        record = read_record(path)
        if record.pop("inputs", None) != inputs:
            return None
        del record["schema"]
        for key in ("seeds", "tune", "scratch", "trained"):  # JSON knows only text keys
            record[key] = {int(k): v for k, v in record[key].items()}
        return StudyPlan(**record)


def measure_all(
    images: StudyImages, source: StudyImages, preset: StudyPreset, inits: list[str], labels: list[int], seconds: float
) -> dict:
    """Cost of each pre-training (by start) and of each training on labels (by (network, labels)), from short real ones.

    All of them together take about `seconds` at most, unless four steps of each take longer.
    """
    costs: dict = {}
    own = [init for init in inits if init in INIT_SHARE]
    on_labels = [*SCRATCH, *(init for init in inits if init.startswith(TIMM))]
    limit = seconds / (len(own) + len(labels) * len(on_labels))
    for init in own:
        module, data = pretraining(init, source, preset, seed=0)
        data.rows = np.arange(min(len(source.pool), 3 * data.batch_size))
        data.batches.n = len(data.rows)
        costs[init] = measure(module, data, limit=limit)
    for count in labels:
        rows = images.subset(min(count, 3 * preset.batch_size), seed=0)
        for init in on_labels:
            module, data = classification(init, images, rows, preset, 0, None)
            costs[preset.network(init).name, count] = measure(module, data, epochs=4, limit=limit)
    return costs


def plan_pretraining(plan: StudyPlan, costs: dict, images: StudyImages, preset: StudyPreset, seconds: float) -> None:
    """Share `seconds` among the pre-trainings that have no epochs yet."""
    missing = [init for init in INIT_SHARE if init in costs and init not in plan.pretrain]
    whole = sum(INIT_SHARE[init] for init in missing)
    for init in missing:
        batch = min(len(images.pool), getattr(preset, init)["batch_size"])
        steps = len(images.pool) // batch
        share = seconds * INIT_SHARE[init] / whole
        if costs[init].seconds(1, steps) > share:  # not even one epoch
            steps = min(steps, max(1, int((share - costs[init].setup) / costs[init].step)))
            plan.pool[init] = steps * batch
            plan.cut.append(f"{init} is pre-trained on {steps * batch} of the {len(images.pool)} images")
        plan.pretrain[init] = costs[init].epochs(share, steps)
        plan.seconds[init] = costs[init].seconds(plan.pretrain[init], steps)


def plan_labels(plan: StudyPlan, costs: dict, preset: StudyPreset, inits: list[str], seconds: float) -> None:
    """Share `seconds` among the trainings on labels: steps grow slowly with the number of labels.

    A training from scratch gets `scratch_factor` times the steps of a fine-tuning. Where the time is too short for trainings that
    say anything, seeds are cut, the costly networks' first.
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
                training_cost: TrainingCost = costs[preset.network(init).name, count]
                trainings = plan.seeds_of(init, count) * len(preset.protocols(init, plan.protocols))
                total += trainings * training_cost.seconds(epochs, per_epoch)
        return total

    for cut in _reductions(plan, preset, inits):
        if cost(FEWEST_STEPS) <= seconds:
            break
        plan.cut.append(cut())
    low, high = float(FEWEST_STEPS), 1e6
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
    """What can be given up when time is short, the least loss first; each does it and says so."""
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
        plan.trained = {count: min(most, plan.most_seeds(count)) for count in plan.seeds}
        _forget(sentences[3])
        return sentences[most]

    def _forget(sentence: str) -> None:  # what a harder cut includes
        plan.cut[:] = [other for other in plan.cut if other != sentence]

    if any(plan.seeds_of(init, count) > 1 for init in costly for count in plan.labels):
        yield one_seed
    if any(plan.seeds_of(init, count) for init in costly for count in plan.labels):
        yield none
    for most in (3, 1):
        if max(map(plan.most_seeds, plan.seeds)) > most:
            yield partial(at_most, most)


def _steps(base: float, count: int, plan: StudyPlan) -> float:
    return base * (count / min(plan.labels)) ** GROWTH
