"""Opened sharded sets: a `Folder` whose images lie in tar files, here or elsewhere."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

from lit_vision.data.folder import Folder, Paths, Split, check_within_root
from lit_vision.data.shards.address import Address
from lit_vision.data.shards.cache import ByteCache, cache_bytes, cache_folder
from lit_vision.data.shards.index import INDEX_NAME, load_index
from lit_vision.data.shards.local import LocalShards
from lit_vision.data.shards.remote import RemoteFiles, RemoteShards, fetch_index
from lit_vision.errors import UserError


class ShardSet(Folder):
    """Sharded set in a folder, read by mmap. A copy sent to a worker process opens the files again.

    Attributes:
        index: what lies where.
        encoding: {"short_side", "quality"} of the images; both None if they are the bytes of the files.
        value_range: values of images deeper than 8 bits that became 0 and 255 when it was written; None for none.

    Args:
        root: the folder.
        verify: check the index and the sizes of the tar files; False for a set that this program has opened already.

    Raises:
        UserError: the index or a tar file is missing, truncated or altered.
    """

    packed = True

    def __init__(self, root: str | Path, verify: bool = True):
        root = Path(root)
        self.index = load_index(root / INDEX_NAME, verify)
        self._storage: LocalShards | RemoteShards = LocalShards(root, self.index, verify)
        self._describe(root)

    def _describe(self, root: Path | Address) -> None:
        """Set what a `Folder` has from the index."""
        index = self.index
        self.encoding = {"short_side": index.short_side, "quality": index.quality}
        self.value_range = index.value_range
        self._paths = {name: Paths.of_arrays(*index.texts("path", start, stop)) for name, start, stop in index.ranges()}
        self._first = {name: start for name, start, _ in index.ranges()}
        splits = {
            name: Split(self._paths[name], index.arrays["label"][start:stop], index.arrays["length"][start:stop])
            for name, start, stop in index.ranges()
        }
        unlabeled = splits.pop("", None) or Split(Paths(()), np.zeros(0, np.int64), np.zeros(0, np.int64))
        groups = _Groups(self) if len(index.arrays["group_bytes"]) else None
        super().__init__(cast(Path, root), index.classes, splits, unlabeled, groups=groups)

    def row_of(self, path: str) -> int:
        """Return the row of a path in the index; UserError if it is not in the set."""
        for name, paths in self._paths.items():
            i = bisect.bisect_left(paths, path)
            if i < len(paths) and paths[i] == path:
                return self._first[name] + i
        raise UserError(f"{self.root}: {path!r} is not in it; lit-vision pack again, if its index is damaged")

    def read(self, path: str) -> bytes:
        """Return the bytes of one image; on its first read the checksum is compared.

        Raises:
            UserError: the path is not in the set, or leads out of any folder, or the tar file was altered.
        """
        return self._storage.read(self.row_of(check_within_root(path)))

    def __reduce__(self) -> tuple[type[ShardSet], tuple[Any, ...]]:
        return ShardSet, (self.root, False)


class RemoteShardSet(ShardSet):
    """Sharded set at s3://, gs:// or https://; its index is copied here, images come when they are asked for.

    Args:
        address: of the set's folder.
        cache_gb: limit of the local cache, see `cache_bytes`.
        verify: as for `ShardSet`.

    Raises:
        UserError: the index cannot be read, or is truncated or altered.
    """

    remote = True

    def __init__(self, address: Address, cache_gb: float | None = None, verify: bool = True):
        self._cache_gb = cache_gb
        files, folder = RemoteFiles(address), cache_folder()
        cache = ByteCache(folder, cache_bytes(cache_gb))
        self.index = fetch_index(files, folder, verify)
        self._remote = self._storage = RemoteShards(files, self.index, cache)
        self._describe(address)

    def prefetch(self, paths: Iterable[str]) -> None:
        """Begin to read images that will be read next."""
        self._remote.prefetch(self.row_of(path) for path in paths)

    def __reduce__(self) -> tuple[type[ShardSet], tuple[Any, ...]]:
        return RemoteShardSet, (self.root, self._cache_gb, False)


class _Groups(Mapping[str, str]):
    """Groups of the images of a set by path."""

    def __init__(self, shards: ShardSet):
        self._set = shards

    def __getitem__(self, path: str) -> str:
        row = self._set.row_of(path)
        return self._set.index.text("group", row)

    def __iter__(self) -> Iterator[str]:
        return (path for paths in self._set._paths.values() for path in paths)

    def __len__(self) -> int:
        return len(self._set.index)
