"""Record commit, versions, device and memory for reproducibility; never a path, a host name or a user's name."""

from __future__ import annotations

import importlib.metadata
import platform
import resource
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lit_vision.io.processes import cores

PACKAGES = ("lit-vision", "torch", "torchvision", "lightning", "timm", "albumentations", "scikit-learn", "numpy")
GIT_SECONDS = 60  # so that a slow machine does not lose the commit; git takes milliseconds


def peak_memory_mb() -> float:
    """Return the peak CPU memory of this process or of one of its ended children, in MB (10^6 bytes)."""
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss counts bytes on macOS, KiB elsewhere
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return round(max(resource.getrusage(w).ru_maxrss for w in who) * unit / 1e6, 1)


def device_name() -> str:
    """Return the name of the accelerator if there is one, else of the CPU."""
    torch = sys.modules.get("torch")  # importing it only for the name would take seconds
    if torch is not None and torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _git(*arguments: str) -> str | None:
    here = Path(__file__).resolve().parent
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=here, capture_output=True, text=True, timeout=GIT_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def commit() -> tuple[str | None, bool | None]:
    """Return (commit, dirty) of the checkout that this code runs from; (None, None) for an installed copy.

    Dirty means that a tracked file differs from the commit; untracked files do not count. This file itself must be
    tracked, so that a copy installed inside the checkout of another project does not report that project's commit.
    """
    if not _git("ls-files", "--error-unmatch", "--", Path(__file__).name):
        return None, None
    head = _git("rev-parse", "HEAD")
    changes = _git("status", "--porcelain", "--untracked-files=no")
    return head, None if changes is None else bool(changes)


def collect_environment(seed: int | None = None, packages: Iterable[str] = PACKAGES) -> dict[str, Any]:
    """Return what is needed to reproduce a number: commit, dirty flag, seed, versions, device, cores, Python, system.

    Args:
        seed: the run's seed, None if it had none.
        packages: distributions whose versions are recorded; those not installed are left out.

    Returns:
        A dict for JSON. No host name, user name or path.
    """
    head, dirty = commit()
    versions = {"python": platform.python_version()}
    for name in packages:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "commit": head,
        "dirty": dirty,
        "seed": seed,
        "device": device_name(),
        "cores": cores(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions,
    }
