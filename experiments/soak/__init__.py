"""Soak test: kill real runs over and over, go on, and compare every bit with the run that nobody killed. Run: make soak

One process imports everything once and forks each run, so that a restart costs half a second, not ten. Parts:
  every step      MAE, SimCLR, Classifier x workers 0, 2 x accumulation 1, 2: SIGKILL before and after the save of every step
  random steps    200 SIGKILLs at random places (batch, validation, save, epoch's end), intervals of 1 to 3 steps between saves
  during saving   200 SIGKILLs at random instants while a checkpoint is being written
  two processes   the same over gloo; and 2 to 1 to 2 processes at a constant global batch
Equal means: weights, optimiser, scheduler, loops, RNG after the last batch, the samples of each step, metrics.csv, all at atol=0
(2 to 1 to 2: samples equal, weights within 1e-5). Each restart says which step it restored, and may repeat one interval at most.
Writes experiments/results/soak.json.
"""

from soak.forks import launch, parse_once, use_what_was_parsed
from soak.parts import Soak, WithRecipe
from soak.run import Failure, Run, assert_same
from soak.toys import EPOCHS, Case, Deadly

__all__ = [
    "EPOCHS",
    "Case",
    "Deadly",
    "Failure",
    "Run",
    "Soak",
    "WithRecipe",
    "assert_same",
    "launch",
    "parse_once",
    "use_what_was_parsed",
]
