"""Files that grow batch by batch and survive a kill: what lies behind the last recorded place is cut off, and the work goes on from there."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_vision.errors import UserError


class ResumableWriter:
    """Streams OUT.part, OUT.<name>.part, ... and OUT.part.json, which says how much of each is good.

    Args:
        out: the file that will be there in the end.
        streams: names; the first is OUT's own.
        identity: plain values that a run must share to go on with another (model, images, settings).
        overwrite: an OUT that is there already may be replaced.

    Attributes:
        done: how many inputs are finished; 0 at the beginning.
        resumed: True when it goes on with a part.
        notes: plain values that are kept with the record; change them before `append`.

    Raises:
        UserError: OUT is there already, or a part of another run that had done something.
    """

    def __init__(self, out: Path, streams: Sequence[str], identity: Mapping[str, Any], overwrite: bool = False) -> None:
        self.out, self.state = out, out.with_name(out.name + ".part.json")
        self.paths = {name: self._part(name, i == 0) for i, name in enumerate(streams)}
        self.identity = json.loads(json.dumps(dict(identity)))
        self.done, self.resumed, self.notes, sizes = 0, False, {}, dict.fromkeys(streams, 0)
        if out.exists() and not overwrite:
            raise UserError(f"--out {out}: exists already; name another file, or give --overwrite")
        if self.state.exists():
            try:
                found = json.loads(self.state.read_text())
                here = set(found["bytes"]) == set(streams) and all(
                    self.paths[n].stat().st_size >= found["bytes"][n] for n in streams
                )
            except (OSError, ValueError, KeyError, TypeError):
                found, here = {}, False
            if here and found["identity"] == self.identity:
                self.done, self.resumed, self.notes, sizes = found["done"], True, found["notes"], found["bytes"]
            elif found.get("done") != 0 and not overwrite:  # nothing done, nothing lost
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
        if not self.resumed:  # a leftover of another run must not be taken for this one's
            self.state.unlink(missing_ok=True)

    def _part(self, name: str, main: bool) -> Path:
        return self.out.with_name(f"{self.out.name}.part" if main else f"{self.out.name}.{name}.part")

    def append(self, texts: Mapping[str, bytes], done: int) -> None:
        """Adds to the streams and records that `done` inputs are finished: all of it or nothing counts.

        Raises:
            UserError: the disk is full; what was recorded before stays good.
        """
        try:
            for name, text in texts.items():
                self.files[name].write(text)
            for file in self.files.values():
                file.flush()
            beside = self.state.with_name(self.state.name + ".tmp")
            sizes = {name: file.tell() for name, file in self.files.items()}
            record = {"identity": self.identity, "done": done, "bytes": sizes, "notes": self.notes}
            beside.write_text(json.dumps(record))
            os.replace(beside, self.state)
        except OSError as error:
            raise UserError(
                f"{self.out}: cannot be written ({error.strerror}); make room, then the same command goes on"
            ) from error
        self.done = done

    def close(self) -> None:
        """Leaves everything as it is, to be gone on with."""
        for file in self.files.values():
            with contextlib.suppress(OSError):
                file.close()

    def finish(self, keep: Mapping[str, Path], main: bool = True) -> None:
        """OUT gets its name, streams in `keep` are copied to theirs, and parts and record go. A kill in between leaves all parts.

        Args:
            keep: {stream: final path}, of those beside the first.
            main: False leaves OUT as it was before, for a run that came to nothing.
        """
        for file in self.files.values():
            file.flush()
            os.fsync(file.fileno())
            file.close()
        for name, path in keep.items():
            beside = path.with_name(path.name + ".tmp")
            shutil.copyfile(self.paths[name], beside)
            os.replace(beside, path)
        parts = list(self.paths.values())
        if main:
            os.replace(parts.pop(0), self.out)
        self.state.unlink(missing_ok=True)
        for path in parts:
            path.unlink(missing_ok=True)
