"""Resumable batch-by-batch output: after a kill, files are truncated to the last recorded batch and continued."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_vision.errors import UserError
from lit_vision.io.atomic import atomic_path, remove_temporaries
from lit_vision.predict.writers import check_not_existing

# keys of `identity` up to commit 37adabd, whose unfinished runs can be continued
RENAMED_KEYS = {"form": "format", "top": "top_k", "score": "min_score"}


class ResumableWriter:
    """Streams OUT.part, OUT.<name>.part, ... and OUT.part.json, which records the valid length of each.

    Args:
        out: the final file.
        streams: names; the first becomes OUT.
        identity: plain values (model, images, settings); only a run with the same ones continues an unfinished run.
        overwrite: an existing OUT may be replaced.

    Attributes:
        done: number of inputs that are finished; 0 at the beginning.
        resumed: True if an unfinished run is continued.
        notes: plain values that are stored with the record; change them before `append`.

    Raises:
        UserError: OUT exists, or an unfinished run with another identity that has finished some inputs.
    """

    def __init__(self, out: Path, streams: Sequence[str], identity: Mapping[str, Any], overwrite: bool = False) -> None:
        self.out, self.state = out, out.with_name(out.name + ".part.json")
        self.paths = {name: self._part(name, i == 0) for i, name in enumerate(streams)}
        self.identity = json.loads(json.dumps(dict(identity)))
        self.done, self.resumed, sizes = 0, False, dict.fromkeys(streams, 0)
        self.notes: dict[str, Any] = {}
        check_not_existing(out, overwrite)
        if self.state.exists():
            try:
                record = json.loads(self.state.read_text())
                identity_before = {RENAMED_KEYS.get(key, key): value for key, value in record["identity"].items()}
                complete = set(record["bytes"]) == set(streams) and all(
                    self.paths[n].stat().st_size >= record["bytes"][n] for n in streams
                )
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                record, identity_before, complete = {}, {}, False
            if complete and identity_before == self.identity:
                self.done, self.resumed, self.notes, sizes = record["done"], True, record["notes"], record["bytes"]
            elif record.get("done") != 0 and not overwrite:  # a run that has done nothing may be replaced
                raise UserError(
                    f"{self.state}: belongs to an unfinished run with another model, images or settings; "
                    "repeat that command to finish it, or give --overwrite"
                )
        self.files = {}
        try:
            for name, path in self.paths.items():
                self.files[name] = open(path, "r+b" if self.resumed else "w+b")  # noqa: SIM115
                self.files[name].truncate(sizes[name])
                self.files[name].seek(sizes[name])
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror}); choose another --out") from error
        if not self.resumed:  # the record of another run must not be taken for this one's
            self.state.unlink(missing_ok=True)
        remove_temporaries(self.state)

    def _part(self, name: str, main: bool) -> Path:
        return self.out.with_name(f"{self.out.name}.part" if main else f"{self.out.name}.{name}.part")

    def append(self, texts: Mapping[str, bytes], done: int) -> None:
        """Append to the streams and record that `done` inputs are finished; after a kill, all of it or nothing counts.

        Raises:
            UserError: the disk is full; what was recorded before stays valid.
        """
        try:
            for name, text in texts.items():
                self.files[name].write(text)
            for file in self.files.values():
                file.flush()
            sizes = {name: file.tell() for name, file in self.files.items()}
            record = {"identity": self.identity, "done": done, "bytes": sizes, "notes": self.notes}
            with atomic_path(self.state, fsync=False) as temporary:  # once a batch
                temporary.write_text(json.dumps(record))
        except OSError as error:
            raise UserError(
                f"{self.out}: cannot be written ({error.strerror}); make room and run the same command again"
            ) from error
        self.done = done

    def close(self) -> None:
        """Close the files and leave them for a later run to continue."""
        for file in self.files.values():
            with contextlib.suppress(OSError):
                file.close()

    def finish(self, keep: Mapping[str, Path], main: bool = True) -> None:
        """Rename the first stream to OUT, copy the streams in `keep`, and remove the parts and the record.

        A kill in between leaves all parts.

        Args:
            keep: {stream: final path}, of streams other than the first.
            main: False leaves OUT as it was before, for a run without results.
        """
        for file in self.files.values():
            file.flush()
            os.fsync(file.fileno())
            file.close()
        for name, path in keep.items():
            with atomic_path(path, fsync=False) as temporary:
                shutil.copyfile(self.paths[name], temporary)
        parts = list(self.paths.values())
        if main:
            os.replace(parts.pop(0), self.out)
        self.state.unlink(missing_ok=True)
        for path in parts:
            path.unlink(missing_ok=True)
