"""Time of a study while it runs: what is left, how long the next trainings may be, when a training cools down."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lit_vision.optim.schedule import decay_steps_from
from lit_vision.study.decisions import Decisions
from lit_vision.study.plan import Plan, Unit

REPORT_SHARE = 0.06  # of the budget: for the report, within the next two
REPORT_SECONDS = (15.0, 120.0)
DECAY_SHARE = 0.2  # of all steps: the methods' default, which the presets keep
LEAST = 0.5  # of a unit's fewest steps: with fewer a training is left out, or not cut further
SHORT = 1.0  # seconds; trainings that should take less say too little about the machine's speed


class Pace:
    """Divides the time that is left by the plan and the speed of the latest training.

    Args:
        decisions: of the study; every answer that depends on the clock is stored there before it is acted on.
        budget: seconds of the study.

    Attributes:
        plan: whose planned seconds give the shares of the time; empty until it is made.
        frozen_seconds: of the protocols without a training of one init, as measured.
        slower: seconds of the latest training over those that its measured steps promised.
    """

    def __init__(self, decisions: Decisions, budget: float) -> None:
        self.decisions, self.budget = decisions, budget
        self.plan, self.frozen_seconds, self.slower = Plan(), 0.0, 1.0

    @property
    def remaining(self) -> float:
        """Seconds that are left for measuring and training."""
        low, high = REPORT_SECONDS
        return self.budget - self.decisions.elapsed - min(high, max(low, REPORT_SHARE * self.budget))

    def compare(self, seconds: float, expected: float) -> None:
        """Note how much slower the machine is than when its steps were measured."""
        if expected > SHORT:
            self.slower = seconds / expected

    def allowed(self, unit: Unit, rest: Sequence[Unit]) -> float:
        """Return the seconds of a unit: its planned share of what is left for `rest`, the units from it on."""
        frozen = self.frozen_seconds * sum(not other.labels for other in rest)
        left = max(0.0, self.remaining - self.slower * frozen)
        return left * self.plan.seconds([unit]) / max(self.plan.seconds(rest), 1e-9)

    def steps(self, unit: Unit, rest: Sequence[Unit]) -> int:
        """Return the steps of a unit, decided now; 0 leaves it out, since the machine became slower."""

        def compute() -> int:
            if unit.fixed:
                return unit.full
            steps = unit.steps(self.allowed(unit, rest) / self.slower)
            return steps if steps >= LEAST * unit.fewest else 0

        return int(self.decisions.decide(f"{unit.name}: steps", compute))

    def deadline(self, unit: Unit, rest: Sequence[Unit]) -> float:
        """Return the second of the study at which a unit that begins now should end; infinity if its steps are set."""
        return float("inf") if unit.fixed else self.decisions.elapsed + self.allowed(unit, rest)

    def cool_down(self, title: str, deadline: float, unit: Unit) -> Callable[[int], bool]:
        """Return a function that tells a training, after each step, whether its decay begins now.

        It does if, at the speed since the first call, the decay would end at the deadline. The step is stored before
        the training acts on it.

        Args:
            title: of the training, unique in the study.
            deadline: second of the study.
            unit: of the training; it gets half of the unit's fewest steps at least, however slow the machine is.
        """
        name, fewest = f"{title}: decay from step", LEAST * unit.fewest * (1 - DECAY_SHARE)
        first: list[tuple[int, float]] = []

        def begins(step: int) -> bool:
            decided = self.decisions.get(name)
            if decided is not None:
                return bool(step >= decided)
            if self.decisions.replaying or deadline == float("inf"):
                return False
            now = self.decisions.elapsed
            if not first:
                first.append((step, now))
                return False
            if step < fewest:
                return False
            seconds_per_step = (now - first[0][1]) / (step - first[0][0])
            if now + decay_steps_from(step, DECAY_SHARE) * seconds_per_step < deadline:
                return False
            self.decisions.add(name, step)
            return True

        return begins
