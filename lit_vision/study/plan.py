"""Plan of a study from measured costs: which trainings fit the time, in which order, and how long they are.

A study compares contenders: an init with a protocol. Those that train no network are run at every number of labels and
for all seeds; trainings are grouped into units, one per init, protocol and number of labels, that hold all paired
seeds. A unit is run whole or not at all, so that every comparison has all its seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from lit_vision.study.presets import SCRATCH, StudyPreset, method_of

FULL_STEPS = 300  # of a fine-tuning at the fewest labels; more are not worth their time
FEWEST_STEPS = 60  # of a fine-tuning; with fewer it is left out
GROWTH = 0.25  # steps grow with this power of the number of labels
FEWEST_PRETRAIN_EPOCHS = 30  # a pre-training that has time for fewer, and for fewer steps than the next, is left out
FEWEST_PRETRAIN_STEPS = 2000
PRETRAIN_SHARE = 0.6  # of the time beyond the shortest trainings
HALF = 0.5  # steps of the training on half of the labels, whose other half judges the protocol
MOST_PRETRAIN_EPOCHS = 800
FROZEN_COUNTS = 4  # numbers of labels, at least, at which protocols without a training are measured


@dataclass(frozen=True)
class Cost:
    """Seconds of a training: once, and for each image of a step."""

    setup: float
    image: float

    def seconds(self, images: float) -> float:
        """Return the seconds of a training that sees this number of images."""
        return self.setup + images * self.image


@dataclass(frozen=True)
class Unit:
    """Trainings that are run together.

    Attributes:
        init: of the trainings.
        protocol: one of ON_LABELS, or "pretrain" for the pre-training of `init`.
        labels: number of labels; 0 for a pre-training.
        seeds: number of paired seeds; 1 for a pre-training.
        batch: images of a step.
        fewest: steps below which it is not worth running.
        full: steps beyond which it gets no more.
        cost: of one training.
        fixed: True if the user has set the steps; they are then `full`, and never reduced.
        judged: True if each seed is trained on half of its labels too.
    """

    init: str
    protocol: str
    labels: int
    seeds: int
    batch: int
    fewest: int
    full: int
    cost: Cost
    fixed: bool = False
    judged: bool = False

    @property
    def name(self) -> str:
        """Text that decisions name it by."""
        return (
            f"{self.init}, pre-training" if not self.labels else f"{self.init}, {self.protocol}, {self.labels} labels"
        )

    def seconds(self, steps: float) -> float:
        """Return the seconds of all its trainings at this number of steps."""
        halves = 1 + HALF if self.judged else 1.0
        trainings = self.seeds * (2 if self.judged else 1)
        return trainings * self.cost.setup + self.seeds * halves * steps * self.batch * self.cost.image

    def steps(self, seconds: float) -> int:
        """Return the steps that fit into `seconds`, at most `full`; may be 0."""
        per_step = self.seconds(1) - self.seconds(0)
        if not per_step:  # set by the user, and not measured
            return self.full
        return int(min(self.full, max(0.0, (seconds - self.seconds(0)) / per_step)))


@dataclass
class Plan:
    """Units in the order of their run, their planned steps, and what was left out.

    Attributes:
        units: that fit the time.
        steps: planned steps by the name of the unit.
        not_tried: reason, by the name of a unit.
    """

    units: list[Unit] = field(default_factory=list)
    steps: dict[str, int] = field(default_factory=dict)
    not_tried: dict[str, str] = field(default_factory=dict)

    def seconds(self, units: Sequence[Unit]) -> float:
        """Return the expected seconds of some units."""
        return sum(unit.seconds(self.steps[unit.name]) for unit in units)


def pretraining_name(init: str) -> str:
    """Return the name of an init's pre-training among the costs."""
    return f"pretrain {init}"


def frozen_counts(labels: Sequence[int], fewest: int, most: int) -> list[int]:
    """Return at least FROZEN_COUNTS numbers of labels, if there are as many, that contain `labels`.

    Numbers are added between the smallest and the largest, evenly on a logarithmic scale; if `labels` is one number,
    down to an eighth of it.

    Args:
        labels: numbers that the user asked for, ascending.
        fewest: number of classes.
        most: all labels.
    """
    counts = {min(max(count, fewest), most) for count in labels}
    low, high = min(counts), max(counts)
    if low == high:
        low = max(fewest, high // 8)
    for number in range(FROZEN_COUNTS, 3 * FROZEN_COUNTS):
        if len(counts) >= min(FROZEN_COUNTS, high - low + 1):
            break
        between = np.geomspace(low, high, number).round().astype(int).tolist()
        for count in between:
            # not beside one that is there: a neighbor tells nothing new
            if all(max(count, other) > 1.3 * min(count, other) for other in counts) or number > 2 * FROZEN_COUNTS:
                counts.add(count)
                if len(counts) >= FROZEN_COUNTS:
                    break
    return sorted(counts)


def tune_steps(base: float, count: int, fewest_labels: int) -> int:
    """Return the steps at a number of labels, where the fewest labels get `base`."""
    return max(1, round(base * float((count / fewest_labels) ** GROWTH)))


def order(inits: Sequence[str]) -> list[str]:
    """Return all inits that are trained on labels, cheapest first.

    That is public weights and files, networks from scratch, then what a study pre-trains itself. A baseline whose
    network only one pre-training uses, scratch-vit, comes behind those that it is compared with.
    """
    own = [init for init in inits if method_of(init)]
    given = [init for init in inits if init not in own and init not in (*SCRATCH, "pixels")]
    vit = "mae" in own or SCRATCH[1] in inits
    return [SCRATCH[0], *given, *own, *([SCRATCH[1]] if vit else [])]


def make_units(
    inits: Sequence[str],
    preset: StudyPreset,
    labels: Sequence[int],
    seeds: Mapping[int, int],
    protocols: Sequence[str],
    costs: Mapping[str, Cost],
    pool: int,
    *,
    max_seeds: Mapping[str, int] | None = None,
    epochs: Mapping[str, int] | None = None,
) -> list[Unit]:
    """Return all units of a study in the order of their run, whether they fit the time or not.

    Args:
        inits: those asked for; the baselines from scratch are added.
        preset: of the study.
        labels: numbers of labels at which networks are trained, ascending.
        seeds: by number of labels.
        protocols: of ON_LABELS.
        costs: of a training on labels by init, of a pre-training by `pretraining_name`.
        pool: images to pre-train on.
        max_seeds: limits of the seeds, by init.
        epochs: set by the user, by init (pre-trainings) or number of labels as text.
    """
    limits, fixed, units = max_seeds or {}, epochs or {}, []
    for init in order(inits):
        if method_of(init):
            batch = min(pool, preset.pretraining_options(init)["batch_size"])
            per_epoch = max(1, pool // batch)
            set_steps = fixed.get(init, 0) * per_epoch
            fewest = min(FEWEST_PRETRAIN_EPOCHS * per_epoch, max(per_epoch, FEWEST_PRETRAIN_STEPS))
            full = set_steps or MOST_PRETRAIN_EPOCHS * per_epoch
            cost = costs[pretraining_name(init)]
            units.append(Unit(init, "pretrain", 0, 1, batch, min(fewest, full), full, cost, bool(set_steps)))
        for count in labels:
            factor = preset.scratch_factor if init in SCRATCH else 1
            per_epoch = preset.steps_per_epoch(count)
            set_steps = fixed.get(str(count), 0) * per_epoch * factor
            fewest, full = (
                set_steps or factor * tune_steps(base, count, min(labels)) for base in (FEWEST_STEPS, FULL_STEPS)
            )
            for protocol in preset.protocols(init, protocols):
                number = min(seeds[count], limits.get(init, seeds[count]))
                if number:
                    batch = count // per_epoch
                    units.append(
                        Unit(
                            init,
                            protocol,
                            count,
                            number,
                            batch,
                            fewest,
                            full,
                            costs[init],
                            fixed=bool(set_steps),
                            judged=init not in SCRATCH,  # the best baseline is named by the test split
                        )
                    )
    return units


def make_plan(units: Sequence[Unit], seconds: float, say: Callable[[float], str]) -> Plan:
    """Choose the units that fit into `seconds`, in their order, and divide the time among them.

    A unit is taken if its fewest steps fit beside those before it; the trainings on labels of an init that is left out
    are left out too. What is left is divided: PRETRAIN_SHARE goes to pre-trainings, the rest lengthens the trainings on
    labels in common, up to their full steps; what these do not need goes to pre-trainings.

    Args:
        units: of `make_units`.
        seconds: for all of them.
        say: formats seconds for the reasons.
    """
    plan, spent, missing = Plan(), 0.0, set()
    for unit in units:
        if unit.init in missing:
            plan.not_tried[unit.name] = "its pre-training is not tried"
            continue
        needed = unit.seconds(unit.fewest)
        if unit.fixed or spent + needed <= seconds:
            plan.units.append(unit)
            spent += needed
            continue
        plan.not_tried[unit.name] = f"needs {say(needed)}, and {say(max(0.0, seconds - spent))} are left"
        if not unit.labels:
            missing.add(unit.init)
    trained = [unit for unit in plan.units if unit.labels]
    pretrained = [unit for unit in plan.units if not unit.labels]
    rest = max(0.0, seconds - spent)
    for_labels = rest * (1 - PRETRAIN_SHARE) if any(not unit.fixed for unit in pretrained) else rest
    wanted = sum(unit.seconds(unit.full) - unit.seconds(unit.fewest) for unit in trained)
    share = min(1.0, for_labels / wanted) if wanted else 0.0
    for unit in trained:
        plan.steps[unit.name] = unit.fewest + int(share * (unit.full - unit.fewest))
    rest -= share * wanted
    flexible = [unit for unit in pretrained if not unit.fixed]
    for unit in pretrained:
        more = unit.steps(unit.seconds(unit.fewest) + rest / max(1, len(flexible))) - unit.fewest
        plan.steps[unit.name] = unit.fewest + (0 if unit.fixed else max(0, more))
    return plan
