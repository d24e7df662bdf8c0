"""Both generators, the GAN with two optimizers: killed, resumed, and compared with a run that nobody killed."""

import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3] / "experiments"))
import soak

import lit_vision.cli.lightning_cli  # noqa: F401  imported before the forks, once for all of them


def test_generation__a_killed_run_ends_with_the_bits_of_an_uninterrupted_one() -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None, prefix="soak-") as folder:
        kills = soak.Soak(Path(folder), preload=("GAN",))
        kills.every_step(["GAN", "FlowMatching"], [0], [1], steps=1)
        assert kills.failures == []
        assert kills.counts["every step"]["kills"] == 4
