"""Open a folder of images, a sharded set or an older pack file."""

from __future__ import annotations

import logging
from pathlib import Path

from lit_vision.data.folder import Folder, scan
from lit_vision.data.pack import Pack
from lit_vision.data.shard_indexer import add_index, is_shard_folder
from lit_vision.data.shard_set import RemoteShardSet, ShardSet
from lit_vision.data.shards.address import Address, is_address
from lit_vision.data.shards.index import INDEX_NAME

log = logging.getLogger(__name__)


def is_packed(path: str | Path) -> bool:
    """True for a sharded set, here or at an address, or for a pack file, which earlier versions wrote."""
    return is_address(path) or _is_pack_file(path) or is_shard_folder(Path(path))


def _is_pack_file(path: str | Path) -> bool:
    return Path(path).suffix == ".pack" and Path(path).is_file()


def open_images(
    root: str | Path, train: str = "train", val: str = "val", test: str = "test", *, cache_gb: float | None = None
) -> Folder:
    """Return the splits, classes and paths below a root; no image is decoded.

    Args:
        root: the folder, or one of WebDataset tar files, as `lit-vision pack` writes it, or an older pack file
            (*.pack). Tar files without an index are read once, and the index is written beside them. A set may also lie
            elsewhere, at s3://, gs:// or https://.
        train: name of the training split's folder. A set of shards has the split names that it was written with.
        val: name of the validation split's folder.
        test: name of the test split's folder.
        cache_gb: limit of the local cache of images that lie elsewhere; None: 10, or LIT_VISION_CACHE_GB.

    Raises:
        UserError: as `folder.scan`, `shard_set.ShardSet`, `shard_indexer.add_index` and `pack.Pack`.
    """
    return open_packed(root, cache_gb) if is_packed(root) else scan(root, train, val, test)


def open_packed(root: str | Path, cache_gb: float | None = None) -> Folder:
    """Return the images of a sharded set or an older pack file.

    Args:
        root: of the set, or the file.
        cache_gb: as for `open_images`.

    Raises:
        UserError: it is truncated, altered, or no such set.
    """
    if isinstance(root, str) and is_address(root):
        return RemoteShardSet(Address(root), cache_gb)
    root = Path(root)
    if _is_pack_file(root):
        pack = Pack(root)
        log.warning(
            "%s: packs are no longer written; store it as shards: lit-vision pack %s --out %s --lossless",
            root, root, root.with_suffix(""),
        )  # fmt: skip
        return pack
    if not (root / INDEX_NAME).is_file():
        add_index(root)
    shards = ShardSet(root)
    names = {shard.name for shard in shards.index.shards}
    if others := sorted(path.name for path in root.glob("[!.]*.tar") if path.name not in names):
        log.warning(
            "%s: %s does not know %d tar files (%s), which are left out; remove it to have it written anew",
            root, INDEX_NAME, len(others), others[0],
        )  # fmt: skip
    return shards
