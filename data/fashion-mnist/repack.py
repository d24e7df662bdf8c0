"""Make the two embedded files: the first 10,000 images and labels of Fashion-MNIST's training file.

Run: python data/fashion-mnist/repack.py [--source /usr/share/datasets/fashion-mnist] The source is Debian's package
`dataset-fashion-mnist` (the same bytes as Zalando's release). The result keeps the IDX format, so that any MNIST reader
can read it, with the count in the header changed; gzip is written without time or name, so the sha256 are stable for
one zlib. Also writes SHA256SUMS.
"""

import argparse
import gzip
import hashlib
import struct
from pathlib import Path

COUNT = 10_000
HERE = Path(__file__).parent


def sha256(path: Path) -> str:
    """Return the sha256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def idx_head(data: bytes, count: int) -> bytes:
    """Return the first `count` items of an IDX file, as an IDX file."""
    dimensions = data[3]
    shape = struct.unpack(f">{dimensions}I", data[4 : 4 + 4 * dimensions])
    item = 1
    for side in shape[1:]:
        item *= side
    start = 4 + 4 * dimensions
    return data[:4] + struct.pack(f">{dimensions}I", count, *shape[1:]) + data[start : start + count * item]


def main() -> None:
    """Write both files and their sums."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--source", type=Path, default=Path("/usr/share/datasets/fashion-mnist"), help="folder of the files"
    )
    source = parser.parse_args().source
    lines = []
    for name in ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"):
        target = HERE / name.replace("train", "train10k")
        target.write_bytes(gzip.compress(idx_head(gzip.decompress((source / name).read_bytes()), COUNT), 9, mtime=0))
        lines += [f"{sha256(source / name)}  source {name}", f"{sha256(target)}  {target.name}"]
    (HERE / "SHA256SUMS").write_text("\n".join(lines) + "\n")
    print(f"{HERE}: {sum(p.stat().st_size for p in HERE.glob('*.gz')) / 1e6:.1f} MB\n" + "\n".join(lines))


if __name__ == "__main__":
    main()
