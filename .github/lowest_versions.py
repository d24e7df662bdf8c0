"""Write constraints-lowest.txt: for every requirement in setup.cfg, the lowest version that its range allows.

Run: python .github/lowest_versions.py > constraints-lowest.txt
"""

import configparser
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
HEADER = "# The lowest versions that setup.cfg allows (python .github/lowest_versions.py > constraints-lowest.txt)."


def lowest_versions(setup_cfg: Path = ROOT / "setup.cfg") -> str:
    """Return the text of constraints-lowest.txt.

    Raises:
        ValueError: a requirement has no lower bound, or two for the same package.
    """
    config = configparser.ConfigParser()
    config.read_string(setup_cfg.read_text())
    texts = [config["options"]["install_requires"], *config["options.extras_require"].values()]
    lowest: dict[str, str] = {}
    for line in "\n".join(texts).split("\n"):
        if not line.strip():
            continue
        requirement = Requirement(line)
        bounds = [spec.version for spec in requirement.specifier if spec.operator in (">=", "==")]
        if len(bounds) != 1:
            raise ValueError(f"setup.cfg: {line.strip()!r} must state one lower bound (NAME >= VERSION)")
        if lowest.setdefault(requirement.name, bounds[0]) != bounds[0]:
            raise ValueError(f"setup.cfg: two lower bounds for {requirement.name}")
    return "\n".join([HEADER, *(f"{name}=={lowest[name]}" for name in sorted(lowest, key=str.lower))]) + "\n"


if __name__ == "__main__":
    print(lowest_versions(), end="")
