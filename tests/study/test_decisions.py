"""Decisions of a study: stored before they are acted on, found again, replayed."""

import errno
import json
import re
from pathlib import Path

import pytest

from lit_vision.cli.library_errors import from_library_error
from lit_vision.errors import UserError
from lit_vision.study.decisions import Decisions, only_run, read_finished


class Clock:
    """Seconds that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def _never() -> None:
    raise AssertionError("the clock was asked")


def test_decide__computes_once_and_finds_the_value_in_a_later_run(tmp_path) -> None:
    path, clock = tmp_path / "plan.jsonl", Clock()
    decisions = Decisions(path, "inputs", 60, clock=clock)
    clock.now = 12.5
    assert not decisions.found
    assert decisions.decide("steps", lambda: (1, 2)) == [1, 2]  # as JSON gives it back, in the first run too
    assert json.loads(path.read_text().splitlines()[1]) == {"decision": "steps", "value": [1, 2], "seconds": 12.5}
    again = Decisions(path, "inputs", 60, clock=clock)
    assert again.found
    assert again.decide("steps", _never) == [1, 2]
    clock.now = 14.5
    assert again.elapsed == 14.5  # those of the first run count
    assert not Decisions(path, "others", 60).found
    again.add("more", 3)
    assert not Decisions(path, "inputs", 61).found
    assert path.read_text().count("\n") == 1  # a plan for other inputs or another budget begins anew


def test_a_line_that_a_kill_cut_short_is_dropped_and_the_others_stay(tmp_path) -> None:
    path = tmp_path / "plan.jsonl"
    decisions = Decisions(path, "inputs", 60)
    decisions.add("a", 1)
    decisions.add("b", 2)
    whole = path.read_bytes()
    for cut in range(1, len(whole.splitlines(keepends=True)[-1]) + 1):
        path.write_bytes(whole[:-cut])
        found = Decisions(path, "inputs", 60)
        assert (found.get("a"), found.get("b")) == (1, None)
        assert found.decide("b", lambda: 5) == 5
        assert Decisions(path, "inputs", 60).get("b") == 5


def test_replay__takes_every_decision_and_never_makes_one(tmp_path) -> None:
    first = Decisions(tmp_path / "a.jsonl", "inputs", 60)
    first.add("steps", 7)
    with pytest.raises(UserError, match="did not end"):
        Decisions(tmp_path / "b.jsonl", "inputs", 600, tmp_path / "a.jsonl")
    first.finish()
    first.finish()
    assert (tmp_path / "a.jsonl").read_text().count('"end"') == 1
    replay = Decisions(tmp_path / "b.jsonl", "inputs", 600, tmp_path / "a.jsonl")  # another budget does not matter
    assert replay.decide("steps", _never) == 7
    with pytest.raises(UserError, match="no decision 'other'"):
        replay.decide("other", _never)
    assert Decisions(tmp_path / "b.jsonl", "inputs", 60).get("steps") == 7  # the folder goes on without --plan
    with pytest.raises(UserError, match="other images or settings"):
        Decisions(tmp_path / "c.jsonl", "others", 60, tmp_path / "a.jsonl")
    with pytest.raises(UserError, match="no such file"):
        read_finished(tmp_path / "none.jsonl")
    lines = (tmp_path / "a.jsonl").read_text().splitlines(keepends=True)
    for changed in ('"seconds": "x"', '"seconds": null'):  # by hand
        (tmp_path / "d.jsonl").write_text("".join([*lines[:-1], re.sub(r'"seconds": [\d.]+', changed, lines[-1])]))
        with pytest.raises(UserError, match="did not end"):
            read_finished(tmp_path / "d.jsonl")
    for content in ("", "{}\n", "no JSON\n"):
        (tmp_path / "d.jsonl").write_text(content)
        with pytest.raises(UserError, match=r"no plan\.jsonl"):
            Decisions(tmp_path / "c.jsonl", "inputs", 60, tmp_path / "d.jsonl")
    assert not (tmp_path / "c.jsonl").exists()


def test_two_studies_in_one_folder_at_a_time_are_refused(tmp_path) -> None:
    for _ in range(2):  # it is free again behind the block
        with only_run(tmp_path / "run"):
            with pytest.raises(UserError, match="another study runs in it"), only_run(tmp_path / "run"):
                pass
            with only_run(tmp_path / "other"):
                pass


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a file that is always full")
def test_a_full_disk_is_one_line_that_names_the_file(tmp_path) -> None:
    decisions = Decisions(tmp_path / "plan.jsonl", "inputs", 60)
    decisions.path = Path("/dev/full")
    with pytest.raises(UserError, match=r"/dev/full: .*make room"):
        decisions.add("steps", 7)
    assert from_library_error(OSError(errno.ENOSPC, "No space left on device")).exit_code == 1
