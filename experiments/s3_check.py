"""Shards in a bucket of S3: the batches and weights of the folder, through s3fs and a local stand-in for S3 (moto).

Run: make s3-check. It makes a virtual environment of its own below --work (moto and s3fs, about 100 MB, from the
package index), which sees the packages of the present one, starts moto's server there, stores a small set in a bucket,
and trains from it. moto is no S3: it shows that requests, ranges and errors are right, nothing about speed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from lit_vision.cli.parser import ScriptParser
from lit_vision.io.atomic import write_json

RESULT = Path(__file__).parent / "results" / "shards-s3.json"
PACKAGES = ("moto[server,s3]", "s3fs")
ENVIRONMENT = {  # of moto: any key is right
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "LIT_VISION_CACHE_GB": "0",
}


def make_environment(folder: Path) -> Path:
    """Return the Python of a virtual environment that has PACKAGES and sees those of this one."""
    python = folder / "bin" / "python"
    if not (folder / "complete").is_file():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        (here,) = folder.glob("lib/python*/site-packages")
        (here / "outer.pth").write_text(sysconfig.get_path("purelib") + "\n")
        fsspec = subprocess.run(
            [sys.executable, "-c", "import fsspec; print(fsspec.__version__)"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *PACKAGES, f"fsspec=={fsspec}"], check=True)
        (folder / "complete").touch()
    return python


def check(work: Path) -> dict[str, Any]:
    """Compare the folder, its shards in the bucket, and what failures say; runs in that environment."""
    import boto3
    import lightning
    import moto
    import numpy as np
    import s3fs
    import torch
    from moto.server import ThreadedMotoServer
    from PIL import Image

    from lit_vision.data import ImageFolderDataModule
    from lit_vision.data.folder import scan
    from lit_vision.data.open_images import open_images
    from lit_vision.data.shard_writer import write_shards
    from lit_vision.errors import UserError
    from lit_vision.methods import Classifier

    rng, root = np.random.default_rng(0), work / "folder"
    for i in range(48):
        path = root / ("train" if i < 32 else "val") / "ab"[i % 2] / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(path)
    write_shards(scan(root), work / "shards", 4, overwrite=True)
    server = ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    endpoint = "http://{}:{}".format(*server.get_host_and_port())
    os.environ["AWS_ENDPOINT_URL_S3"] = endpoint
    bucket = boto3.client("s3", endpoint_url=endpoint)
    bucket.create_bucket(Bucket="images")
    for path in sorted((work / "shards").iterdir()):
        bucket.upload_file(str(path), "images", f"toy/{path.name}")

    def weights(source: str, workers: int) -> dict[str, Any]:
        torch.manual_seed(0)
        data = ImageFolderDataModule(source, img_size=32, batch_size=8, num_workers=workers, in_memory=False)
        size = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}
        model = Classifier("vit_tiny_patch16_224", 2, size, mean=[0.5] * 3, std=[0.25] * 3, lr=1e-3, warmup_epochs=0)
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        lightning.Trainer(
            max_epochs=2, accelerator="cpu", use_distributed_sampler=False, enable_model_summary=False, **quiet
        ).fit(model, data)
        return model.state_dict()

    expected = weights(str(root), 0)
    same = {}
    for workers in (0, 2):
        found = weights("s3://images/toy", workers)
        same[f"workers={workers}"] = all(torch.equal(found[name], value) for name, value in expected.items())
    same_fingerprint = open_images("s3://images/toy").fingerprint() == scan(root).fingerprint()
    messages = {}
    bucket.delete_object(Bucket="images", Key="toy/val-00000.tar")
    opened = open_images("s3://images/toy")
    for name, call in (
        ("no tar file", lambda: opened.read(opened.splits["val"].paths[0])),
        ("no set", lambda: open_images("s3://images/none")),
        ("no bucket", lambda: open_images("s3://nowhere/toy")),
    ):
        try:
            call()
            messages[name] = "NO ERROR"
        except UserError as error:
            messages[name] = str(error)
    server.stop()
    return {
        "made_by": "make s3-check",
        "stand_in": "moto, a local imitation of S3; no real bucket was read",
        "versions": {"moto": moto.__version__, "s3fs": s3fs.__version__, "boto3": boto3.__version__},
        "fingerprint_of_the_folder": same_fingerprint,
        "weights_of_the_folder": same,
        "messages": messages,
    }


def main(argv: list[str] | None = None) -> int:
    """Make the environment, run the check in it, write the result; return 1 if something differs."""
    parser = ScriptParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--work", type=Path, default=Path("runs/s3_check"), help="folder of the environment and the set"
    )
    parser.add_argument("--out", type=Path, default=RESULT, help="the JSON file of the result")
    parser.add_argument("--inside", action="store_true", help="the environment is there: run the check")
    args = parser.parse_args(argv)
    args.work.mkdir(parents=True, exist_ok=True)
    if not args.inside:
        python = make_environment(args.work.resolve() / "venv")
        paths = [str(Path(__file__).resolve().parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
        places = {"PYTHONPATH": os.pathsep.join(paths), "XDG_CACHE_HOME": str(args.work.resolve() / "cache")}
        command = [str(python), __file__, "--inside", "--work", str(args.work), "--out", str(args.out)]
        return subprocess.run(command, env={**os.environ, **ENVIRONMENT, **places}).returncode
    result = check(args.work)
    print(json.dumps(result, indent=2))
    write_json(args.out, result)
    good = result["fingerprint_of_the_folder"] and all(result["weights_of_the_folder"].values())
    return int(not good or "NO ERROR" in result["messages"].values())


if __name__ == "__main__":
    sys.exit(main())
