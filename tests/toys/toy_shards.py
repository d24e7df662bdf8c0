"""Small folders of images, to be stored as shards."""

from pathlib import Path

from broken_files import encode, picture


def write_folder(root: Path, count: int = 8, side: int = 24) -> Path:
    """Write `count` JPEGs of two classes into train/, and half as many into val/."""
    for split, number in (("train", count), ("val", count // 2)):
        for i in range(number):
            path = root / split / ("ant", "bee")[i % 2] / f"{i:03d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(picture(i + (split == "val") * 1000, side, side + i % 3), "JPEG"))
    return root
