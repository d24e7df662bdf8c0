"""Sharded sets as files: images in WebDataset tar files, with an index by which each one is read on its own.

layout.py has names, keys and the order of the images; index.py is the index; local.py reads the images from a disk and
remote.py from elsewhere, with cache.py. Beside this room, in data/: shard_writer.py makes a set, shard_indexer.py makes
the index of one that another program wrote, shard_set.py opens a set as a `Folder`.
"""
