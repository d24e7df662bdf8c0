"""Make two image folders, not prepared for a study, from packages that anyone can fetch; to run a study on each.

    npm pack emoji-datasource-twitter@16.0.0        # 3,786 emoji of 64 pixels (Twemoji, CC-BY 4.0), 9 categories
    python experiments/own_folders.py emoji emoji-datasource-twitter-16.0.0.tgz

    apt-get download tuxpaint-stamps-default        # photographs cut out on white: 20 birds, 20 fruits, 50 unlabeled
    python experiments/own_folders.py stamps tuxpaint-stamps-default_*.deb      # unpacks with dpkg

Each prints the study's command at its end. The folders go to data/own-<name>, which git ignores. Two more come from
`lit-vision data patches` and `lit-vision data trees`.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from lit_vision.cli.parser import ScriptParser

ROOT = Path(__file__).parents[1]
LABELED, UNLABELED = 20, 50


def emoji(package: Path, out: Path) -> None:
    """Write each emoji to the folder of its category ("Smileys & Emotion"), on white because they are transparent."""
    with tarfile.open(package) as tar:
        (index,) = (one for one in tar.getnames() if one.endswith("/emoji.json"))
        table = json.load(tar.extractfile(index))
        category = {one["image"]: one["category"] for one in table if one["category"] != "Component"}
        for member in tar:
            name = Path(member.name).name
            if "/64/" in member.name and name in category:
                _write(out / category[name] / name, tar.extractfile(member).read())


def stamps(package: Path, out: Path) -> None:
    """Write 20 photographs of birds, 20 of fruits, and 50 of other animals, plants and food without a label."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["dpkg", "-x", str(package), folder], check=True)
        root = next(Path(folder).rglob("stamps"))
        photographs = [path for path in sorted(root.rglob("*.png")) if "cartoon" not in path.parts]
        for name, kind in (("birds", "animals/birds"), ("fruits", "food/fruit")):
            for path in [path for path in photographs if path.parent == root / kind][:LABELED]:
                _write(out / name / path.name, path.read_bytes())
        others = [path for path in photographs if path.parent.name not in ("birds", "fruit")]
        living = [path for path in others if path.relative_to(root).parts[0] in ("animals", "plants", "food")]
        for path in living[:UNLABELED]:
            _write(out / "unlabeled" / path.name, path.read_bytes())


def _write(path: Path, data: bytes) -> None:
    """Write a PNG without transparency, at most 256 pixels wide and high."""
    from PIL import Image

    image = Image.open(io.BytesIO(data)).convert("RGBA")
    image.thumbnail((256, 256))
    flat = Image.new("RGB", image.size, "white")
    flat.paste(image, mask=image.getchannel("A"))
    path.parent.mkdir(parents=True, exist_ok=True)
    flat.save(path)


def main() -> int:
    """Run the script; return its exit code."""
    parser = ScriptParser(description=__doc__)
    parser.add_argument("name", choices=["emoji", "stamps"], help="the folder to make")
    parser.add_argument("package", type=Path, help="the fetched file")
    parser.add_argument("--out", type=Path, help="default: data/own-<name>")
    options = parser.parse_args()
    out = options.out or ROOT / "data" / f"own-{options.name}"
    if not options.package.is_file():
        parser.error(f"{options.package}: no such file; --help has the commands that fetch it")
    {"emoji": emoji, "stamps": stamps}[options.name](options.package, out)
    counts = {f.relative_to(out).as_posix(): len(list(f.glob("*.*"))) for f in sorted(out.rglob("*")) if f.is_dir()}
    print("\n".join(f"{count:6} {name}" for name, count in counts.items() if count))
    print(f"lit-vision study {os.path.relpath(out)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
