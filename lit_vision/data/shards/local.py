"""Images of a sharded set in local tar files, mapped into memory."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import numpy as np

from lit_vision.data.shards.index import INDEX_NAME, ShardIndex
from lit_vision.errors import UserError


class LocalShards:
    """Images of a set in local tar files, which are mapped into memory when an image of them is read first.

    Args:
        folder: of the tar files.
        index: of the set.
        verify: compare the sizes of the files with the index.

    Raises:
        UserError: a file is missing or has another size.
    """

    def __init__(self, folder: Path, index: ShardIndex, verify: bool = True):
        self.folder, self.index = folder, index
        self._maps: dict[int, mmap.mmap] = {}
        self._verified = np.zeros(len(index), bool)
        for shard in index.shards if verify else ():
            path = folder / shard.name
            try:
                size = os.stat(path).st_size
            except OSError as error:
                raise UserError(f"{path}: {error.strerror}; copy the set again") from None
            if size != shard.size:
                raise UserError(
                    f"{path}: has {size} bytes and not {shard.size}, as {INDEX_NAME} says; copy it again, or remove "
                    f"{INDEX_NAME} if the tar file was changed on purpose"
                )

    def read(self, row: int) -> bytes:
        """Return the bytes of one image; on its first read the checksum is compared.

        Raises:
            UserError: the tar file was altered, or cannot be read.
        """
        arrays = self.index.arrays
        number, offset = int(arrays["shard"][row]), int(arrays["offset"][row])
        mapped = self._maps.get(number)
        if mapped is None:
            mapped = self._maps[number] = self._map(number)
        data: bytes = mapped[offset : offset + int(arrays["length"][row])]
        if not self._verified[row]:
            self.index.check(row, data, str(self.folder))
            self._verified[row] = True
        return data

    def _map(self, number: int) -> mmap.mmap:
        path = self.folder / self.index.shards[number].name
        try:
            with open(path, "rb") as file:
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # ValueError: it is empty
            raise UserError(f"{path}: {getattr(error, 'strerror', error)}; copy the set again") from None
