"""What people bring: every folder has one outcome in all commands, and the committed table shows it."""

import pytest
from folder_shapes import FOLDER_SHAPES
from what_people_bring import RESULT, FolderOutcome, folder_outcomes, folder_section, render


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> list[FolderOutcome]:
    return folder_outcomes(tmp_path_factory.mktemp("shapes"))


def test_doctor_and_fit_agree_on_every_folder(outcomes) -> None:
    differ = [(o.row[0], o.doctor, o.fit) for o in outcomes if o.doctor != o.fit]
    assert not differ
    assert len(outcomes) == len(FOLDER_SHAPES) >= 25


def test_the_committed_table_is_what_the_commands_do(outcomes) -> None:
    assert RESULT.read_text(encoding="utf-8") == render([folder_section(outcomes)])
