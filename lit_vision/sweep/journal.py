"""The journal of a sweep: Optuna's file of trials, shared by the processes of a sweep, also over a network file system.

A trial of the journal is one run: a setting with one seed. The first trials are the settings, each with the recipe's
own seed; repeats with further seeds and the runs of `finish` follow. Only this file and report_trial.py use Optuna.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from lit_vision.errors import UserError
from lit_vision.io.file_lock import locked, try_lock
from lit_vision.sweep.space import Point, Range, Space, Values

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.study import Study

WAITING, RUNNING, COMPLETE, PRUNED, FAILED = "waiting", "running", "complete", "pruned", "failed"
_STATES = {"WAITING": WAITING, "RUNNING": RUNNING, "COMPLETE": COMPLETE, "PRUNED": PRUNED, "FAIL": FAILED}
RECIPE_ALONE = -1  # the number of the setting that changes nothing
NAME = "sweep"


@dataclass(frozen=True)
class Trial:
    """One run of a sweep.

    Attributes:
        number: in the journal.
        setting: number of its setting; RECIPE_ALONE for the recipe as it is.
        seed: of its run: the recipe's own for the settings' first runs.
        finish: it belongs to the comparison on new seeds.
        point: the values that it sets.
        state: WAITING, RUNNING, COMPLETE, PRUNED or FAILED.
        value: of the metric, on the validation split; None without one.
    """

    number: int
    setting: int
    seed: int
    finish: bool
    point: Point
    state: str
    value: float | None

    @property
    def ended(self) -> bool:
        """True if nothing is left to do."""
        return self.state in (COMPLETE, PRUNED, FAILED)


def values_of(trials: Sequence[Trial]) -> dict[int, dict[int, float | None]]:
    """Return {setting: {seed: value}} of the search's runs that have ended, None for pruned and failed ones."""
    values: dict[int, dict[int, float | None]] = {}
    for trial in trials:
        if trial.ended and not trial.finish:
            values.setdefault(trial.setting, {})[trial.seed] = trial.value if trial.state == COMPLETE else None
    return values


class Journal:
    """The trials of a sweep's folder.

    Args:
        folder: of the sweep.
        space: what is searched.
        minimize: True if smaller values are better.
        seed: of the points.
        first_seed: of the runs: the recipe's own.
        pruner: "", "median" or "hyperband".
        max_epochs: of the recipe, for hyperband; None if it has none.

    Raises:
        UserError: Optuna is missing, or the file is damaged.
    """

    def __init__(
        self,
        folder: Path,
        space: Space,
        minimize: bool = False,
        seed: int = 0,
        first_seed: int = 0,
        pruner: str = "",
        max_epochs: int | None = None,
    ) -> None:
        self.folder, self.space, self.seed, self.first_seed = folder, space, seed, first_seed
        self._minimize, self._pruner, self._max_epochs = minimize, pruner, max_epochs
        self.distributions = {key: _distribution(entry) for key, entry in space.items()}
        self._study = self._open()

    def _open(self) -> Study:
        optuna = import_optuna()
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        path = self.folder / "journal.log"
        with locked(self.folder / "journal.lock"):
            _drop_torn_line(path)
        try:
            # Optuna's own lock outlives a process that is killed while it holds it, by 30 seconds
            storage = JournalStorage(JournalFileBackend(str(path), lock_obj=_FileLock(self.folder / "journal.lock")))
            study: Study = optuna.create_study(
                storage=storage,
                study_name=NAME,
                direction="minimize" if self._minimize else "maximize",
                load_if_exists=True,
                pruner=_make_pruner(self._pruner, self._max_epochs),
            )
        except (ValueError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise UserError(
                f"{path}: is damaged ({error}); restore it from a copy, or start in a new folder"
            ) from error
        return study

    def lock(self) -> Any:
        """Return a context in which no other process claims or adds trials."""
        return locked(self.folder / "sweep.lock")

    # ---- reading

    def trials(self) -> list[Trial]:
        """Return all trials, in the order of the journal."""
        found, settings = [], 0
        for frozen in self._study.get_trials(deepcopy=False):
            attributes = frozen.user_attrs
            setting = attributes.get("setting", settings)
            settings += "setting" not in attributes  # the settings themselves are numbered as they come
            found.append(
                Trial(
                    frozen.number,
                    setting,
                    attributes.get("seed", self.first_seed),
                    attributes.get("finish", False),
                    {key: _decode(self.space[key], value) for key, value in frozen.params.items()},
                    _STATES[frozen.state.name],
                    frozen.value,
                )
            )
        return found

    def trial_folder(self, trial: Trial) -> Path:
        """Return the run folder of a trial."""
        name = "recipe" if trial.setting == RECIPE_ALONE else f"{trial.setting:04d}"
        return self.folder / "trials" / name / f"seed-{trial.seed}"

    # ---- writing; the caller holds the lock

    def add(self, point: Point, setting: int | None = None, seed: int | None = None, finish: bool = False) -> None:
        """Add a waiting trial: a new setting, or a run of `setting` with another seed."""
        from optuna.trial import TrialState, create_trial

        self._study.add_trial(
            create_trial(
                state=TrialState.WAITING,
                params={key: _encode(self.space[key], value) for key, value in point.items()},
                distributions={key: self.distributions[key] for key in point},
                user_attrs={} if setting is None else {"setting": setting, "seed": seed, "finish": finish},
            )
        )

    def propose(self, number: int) -> None:
        """Add a waiting setting that Optuna's TPE proposes from the trials so far; its randomness: (seed, number)."""
        optuna = import_optuna()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self._study.sampler = optuna.samplers.TPESampler(seed=_mixed(self.seed, number), constant_liar=True)
        # proposed in memory, so that a process killed here leaves no trial without values
        scratch = optuna.create_study(direction=self._study.direction, sampler=self._study.sampler)
        settings = (t for t in self._study.get_trials(deepcopy=False) if "setting" not in t.user_attrs)
        scratch.add_trials([t for t in settings if _STATES[t.state.name] != WAITING])
        params = scratch.ask(self.distributions).params
        self.add({key: _decode(self.space[key], value) for key, value in params.items()})

    def claim(self) -> tuple[Trial, IO[str]] | None:
        """Take a trial whose run has no living owner: an interrupted one, else the next that waits.

        Returns:
            The trial, now running, and the lock of its folder, to be closed when its outcome is recorded; None if
            other processes hold all that are left.
        """
        trials = self.trials()
        waiting = [trial for trial in trials if trial.state == WAITING][:1]
        for trial in [trial for trial in trials if trial.state == RUNNING] + waiting:
            held = try_lock(self.trial_folder(trial) / "lock")
            if held is not None:
                if trial.state == WAITING:
                    self._study.ask()  # takes the first that waits, which is this one: all claims hold the lock
                return trial, held
        return None

    def end(self, trial: Trial, state: str, value: float | None = None) -> None:
        """Record the outcome of a running trial; do nothing if it has one."""
        from optuna.trial import TrialState

        states = {COMPLETE: TrialState.COMPLETE, PRUNED: TrialState.PRUNED, FAILED: TrialState.FAIL}
        values = value if state == COMPLETE else None
        self._study.tell(trial.number, values, states[state], skip_if_finished=True)

    def reporter(self, number: int) -> Callable[[int, float], bool]:
        """Return a function that reports the value of a step of a trial and returns True if the trial is to end."""
        from optuna.trial import Trial as OptunaTrial

        frozen = self._study.get_trials(deepcopy=False)[number]
        trial = OptunaTrial(self._study, frozen._trial_id)  # has no public way from a number
        reported = set(frozen.intermediate_values)

        def report(step: int, value: float) -> bool:
            if step not in reported:  # a resumed run reports some steps again
                trial.report(value, step)
                reported.add(step)
            return bool(trial.should_prune())

        return report


class _FileLock:
    """Optuna's interface of a lock, with one that the kernel releases when its process is killed."""

    def __init__(self, path: Path) -> None:
        self._path, self._stack = path, ExitStack()

    def acquire(self) -> bool:
        self._stack.enter_context(locked(self._path))
        return True

    def release(self) -> None:
        self._stack.close()


def import_optuna() -> Any:
    """Return the module optuna, quiet but for warnings.

    Raises:
        UserError: it is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise UserError("sweep: needs Optuna: pip install 'lit-vision[sweep]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _make_pruner(name: str, max_epochs: int | None) -> Any:
    from optuna import pruners

    if name == "median":
        return pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=1)
    if name == "hyperband":
        return pruners.HyperbandPruner(max_resource=max_epochs or "auto")
    return pruners.NopPruner()


def _distribution(entry: Values | Range) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(entry, Values):  # Optuna stores plain scalars only: lists and all else as text
        return CategoricalDistribution([_name(value) for value in entry.values])
    if entry.step is not None:
        low, *_, high = entry.all() if len(entry.all()) > 1 else entry.all() * 2
    else:
        low, high = entry.low, entry.high
    if entry.whole:
        return IntDistribution(int(low), int(high), log=entry.log, step=int(entry.step or 1))
    return FloatDistribution(float(low), float(high), log=entry.log, step=entry.step)


def _name(value: Any) -> str:
    """Return a text that tells values apart: the number 1 and the text "1" too."""
    return json.dumps(value)


def _encode(entry: Values | Range, value: Any) -> Any:
    return _name(value) if isinstance(entry, Values) else value


def _decode(entry: Values | Range, value: Any) -> Any:
    return json.loads(value) if isinstance(entry, Values) else value


def _mixed(seed: int, number: int) -> int:
    import numpy as np

    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def _drop_torn_line(path: Path) -> None:
    """Remove a last line without its end, which a power cut or a full disk leaves: Optuna cannot read on after it."""
    if not path.exists():
        return
    with open(path, "rb+") as file:
        content = file.read()
        if content and not content.endswith(b"\n"):
            file.truncate(content.rfind(b"\n") + 1)
            os.fsync(file.fileno())
