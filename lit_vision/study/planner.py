"""Make the plan of a study from steps that are measured, and count the multiply-adds of its models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lit_vision.io.processes import cores
from lit_vision.io.text import format_duration
from lit_vision.results.environment import device_name
from lit_vision.study.cells import CellKey, CellResult
from lit_vision.study.costs import count_multiply_adds, measure_trainings, seeing_name
from lit_vision.study.encoders import Encoder
from lit_vision.study.frozen import fit_probe
from lit_vision.study.images import StudyImages
from lit_vision.study.pace import Pace
from lit_vision.study.pixel_cache import Rows
from lit_vision.study.plan import Cost, Plan, make_plan, make_units, order, pretraining_name
from lit_vision.study.presets import StudyPreset, method_of
from lit_vision.study.settings import Settings
from lit_vision.study.weight_files import redirect_output

MEASURE_SHARE = 0.05  # of the budget: for measuring steps


@dataclass
class Planner:
    """Plans the trainings of a study.

    Attributes:
        images: of the study.
        source: images to pre-train on.
        preset: of the study.
        inits: beside the baselines.
        settings: numbers of labels, seeds and protocols.
        frozen_labels: numbers of labels of the protocols that train no network.
        features: of the labeled pool and the test split, to measure a probe on.
        pace: of the study; it gets the plan, and the seconds of the frozen protocols.
        log: prints a line of progress.
        log_file: gets what Lightning prints.
    """

    images: StudyImages
    source: StudyImages
    preset: StudyPreset
    inits: list[str]
    settings: Settings
    frozen_labels: list[int]
    features: tuple[Rows, Rows]
    pace: Pace
    log: Callable[[str], None]
    log_file: Path
    _counted: dict[str, float] = field(default_factory=dict, init=False)
    _batches: dict[int, int] = field(default_factory=dict, init=False)

    def plan(self, given: int) -> Plan:
        """Return the units that fit the time, with their steps; costs and plan are decisions of the study.

        Args:
            given: number of inits whose frozen features are there but not yet measured on.
        """
        settings, pace, decisions = self.settings, self.pace, self.pace.decisions
        measured = decisions.decide("seconds of setup and of an image", self.measure_costs)
        units = make_units(
            self.inits,
            self.preset,
            settings.labels,
            settings.seeds,
            settings.protocols,
            {name: Cost(*cost) for name, cost in measured.items()},
            len(self.source.pool),
            max_seeds=settings.max_seeds,
            epochs=settings.epochs,
        )
        pace.frozen_seconds = measured["probe"][0]
        self._counted = decisions.decide("multiply-adds of an image", self.count_multiply_adds)
        self._batches = {unit.labels: unit.batch for unit in units if unit.labels}

        def compute() -> dict[str, Any]:
            plan = make_plan(units, pace.remaining - (1 + given) * pace.frozen_seconds, format_duration)
            return {"steps": plan.steps, "not tried": plan.not_tried}

        decided = decisions.decide("plan", compute)
        pace.plan = Plan(
            [unit for unit in units if unit.name in decided["steps"]], decided["steps"], decided["not tried"]
        )
        self._log_plan(pace.plan)
        return pace.plan

    def measure_costs(self) -> dict[str, tuple[float, float]]:
        """Return the costs of all trainings, and as "probe" the seconds of an init's protocols that train nothing."""
        settings = self.settings
        trained = [init for init in order(self.inits) if settings.max_seeds.get(init, 1)]
        free = [count for count in settings.labels if str(count) not in settings.epochs]
        on_labels = trained if free else []
        pretrained = [init for init in trained if method_of(init) and init not in settings.epochs]
        costs = dict.fromkeys([*trained, *map(pretraining_name, trained)], (0.0, 0.0))
        with redirect_output(self.log_file):
            costs |= measure_trainings(
                self.images,
                self.source,
                self.preset,
                on_labels,
                pretrained,
                max(free, default=0),
                self.pace.budget * MEASURE_SHARE,
                self.log,
            )
        return costs | {"probe": (self._measure_probe(), 0.0)}

    def _measure_probe(self) -> float:
        """Return the seconds that the frozen protocols of an init take at all numbers of labels, from one fit."""
        settings, decisions = self.settings, self.pace.decisions
        count, (pool, test) = settings.labels[-1], self.features
        begin = decisions.elapsed
        fit_probe(CellKey("", "linear", count, 0), pool, test[:1], self.images)
        share = sum(settings.seeds_at(other) * other for other in self.frozen_labels) / count
        return (decisions.elapsed - begin) * share

    def count_multiply_adds(self) -> dict[str, float]:
        """Return the multiply-adds of an image, see `costs.count_multiply_adds`."""
        with redirect_output(self.log_file):
            return count_multiply_adds(self.images, self.source, self.preset, order(self.inits))

    def multiply_adds(self, result: CellResult, encoders: Mapping[str, Encoder]) -> int:
        """Return the multiply-adds of one model of a cell, its pre-training here included; 0 for raw pixels.

        Args:
            result: of the cell.
            encoders: of the study, by init.
        """
        key = result.key
        if key.init == "pixels":
            return 0
        encoder = encoders.get(key.init)
        cost = 0.0
        if encoder and method_of(key.init):
            cost += encoder.images_seen * self._counted[pretraining_name(key.init)]
        if result.steps:
            cost += result.steps * self._batches.get(key.labels, key.labels) * self._counted[key.init]
        if encoder:
            cost += key.labels * self._counted[seeing_name(key.init)]
        return round(cost)

    def _log_plan(self, plan: Plan) -> None:
        self.log(f"plan for {format_duration(self.pace.budget)} on {device_name()}, {cores()} cores:")
        labels, seeds = ", ".join(map(str, self.frozen_labels)), self.settings.seeds_at(0)
        self.log(f"  frozen features: {labels} labels, {seeds} seed{'s' * (seeds != 1)}")
        for unit in plan.units:
            steps = plan.steps[unit.name]
            size = f"{steps} steps of {unit.batch} images" + (
                f", {unit.seeds} seed{'s' * (unit.seeds != 1)}" if unit.labels else ""
            )
            seconds = "" if unit.fixed else f", about {format_duration(unit.seconds(steps))}"
            self.log(f"  {unit.name}: {size}{seconds}")
