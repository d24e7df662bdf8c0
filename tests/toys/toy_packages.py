"""npm and Debian packages of a few files, as bytes, to read in tests."""

import gzip
import io
import json
import lzma
import tarfile
from collections.abc import Mapping

import numpy as np
from PIL import Image


def tar(files: Mapping[str, bytes], *members: tarfile.TarInfo) -> bytes:
    """Return a tar archive of some files; further members have no content."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        for member in members:
            archive.addfile(member)
    return buffer.getvalue()


def npm(name: str, files: Mapping[str, bytes], *members: tarfile.TarInfo) -> bytes:
    """Return an npm package; the description comes last, as it may."""
    note = json.dumps({"name": name, "version": "1.2.3"}).encode()
    named = {f"package/{path}": data for path, data in files.items()}
    return gzip.compress(tar({**named, "package/package.json": note}, *members), mtime=0)


def deb(name: str, data: bytes, ending: str = ".xz", control: bytes | None = None) -> bytes:
    """Return a Debian package around the archive of its files: ar, with two archives in it."""
    if control is None:
        control = f"Package: {name}\nVersion: 1:0.18\nDescription: a toy\n of two lines\n".encode()
    parts = {
        "debian-binary": b"2.0\n",
        "control.tar.xz": lzma.compress(tar({"./control": control})),
        f"data.tar{ending}": lzma.compress(data) if ending == ".xz" else data,
    }
    whole = b"!<arch>\n"
    for part, content in parts.items():
        whole += f"{part:16}{0:<12}{0:<6}{0:<6}{'100644':8}{len(content):<10}`\n".encode() + content
        whole += b"\n" * (len(content) % 2)
    return whole


def picture(seed: int, kind: str = "PNG", size: tuple[int, int] = (60, 60)) -> bytes:
    """Return an image file of noise with a transparent left half."""
    pixels = np.random.default_rng(seed).integers(0, 200, (size[1], size[0], 4), dtype=np.uint8)
    pixels[..., 3] = 255
    pixels[:, : size[0] // 2, 3] = 0
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **({"lossless": True} if kind == "WEBP" else {}))
    return buffer.getvalue()


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    """Return a link, or another member without content."""
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member
