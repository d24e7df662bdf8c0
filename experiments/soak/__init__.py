"""Soak test: kill real runs over and over, resume them, and compare every bit with a run that nobody killed.

Run: make soak. One process imports everything once and forks each run, so that a restart costs half a second, not ten.
Scenarios:
  every step      MAE, SimCLR, LeJEPA, Classifier, Distiller x workers 0, 2 x accumulation 1, 2: SIGKILL before and
                  after each step's save
  random steps    200 SIGKILLs at random events (batch, validation, save, epoch's end), 1 to 3 steps between saves
  during saving   200 SIGKILLs at random instants while a checkpoint is being written
  two processes   the same over gloo; and 2 to 1 to 2 processes at a constant global batch
  studies         10 SIGKILLs of a study that repeats a plan, and 10 of one that plans for itself: no decision changes,
                  and the table, the answers and the weights are those of the study that is repeated
  labeling        20 SIGKILLs of the server of lit-vision label while 200 answers are sent: none lost, none doubled
  sweep         20 SIGKILLs of the two processes of lit-vision sweep on a grid of 12 points: each point once, and the
                table and the weights are those of a sweep that nobody killed
Compared with atol=0: weights, optimizer, scheduler, loop counters, RNG states after the last batch, the samples of each
step, metrics.csv (2 to 1 to 2: samples equal, weights within 1e-5). A restart may repeat at most one save interval.
Writes experiments/results/soak.json.
"""

from soak.cases import EPOCHS, Case, KillAtEvent
from soak.fork_server import launch, preparse, use_preparsed
from soak.run import Run, SoakError, assert_same
from soak.scenarios import CaseWithOtherRecipe, Soak

__all__ = [
    "EPOCHS",
    "Case",
    "CaseWithOtherRecipe",
    "KillAtEvent",
    "Run",
    "Soak",
    "SoakError",
    "assert_same",
    "launch",
    "preparse",
    "use_preparsed",
]
