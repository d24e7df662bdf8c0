"""Folders as people bring them: each has one outcome in all commands, and the committed table shows it."""

import pytest
from export_outcomes import ExportOutcome, export_outcomes
from folder_shapes import FOLDER_SHAPES
from label_table_outcomes import TableOutcome, table_outcomes
from what_people_bring import (
    RESULT,
    FolderOutcome,
    export_section,
    folder_outcomes,
    folder_section,
    render,
    table_section,
)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> list[FolderOutcome]:
    return folder_outcomes(tmp_path_factory.mktemp("shapes"))


@pytest.fixture(scope="module")
def exports(tmp_path_factory) -> list[ExportOutcome]:
    return export_outcomes(tmp_path_factory.mktemp("exports"))


@pytest.fixture(scope="module")
def tables(tmp_path_factory) -> list[TableOutcome]:
    return table_outcomes(tmp_path_factory.mktemp("tables"))


def test_doctor_and_fit_agree_on_every_table(tables) -> None:
    assert [(o.row[0], o.doctor, o.fit) for o in tables if o.doctor != o.fit] == []
    assert sum(o.fit for o in tables) >= 9


def test_doctor_and_fit_agree_on_every_folder(outcomes) -> None:
    differ = [(o.row[0], o.doctor, o.fit) for o in outcomes if o.doctor != o.fit]
    assert not differ
    assert len(outcomes) == len(FOLDER_SHAPES) >= 25


def test_doctor_and_fit_agree_on_every_export(exports) -> None:
    assert [o.row[0] for o in exports if o.doctor != o.fit] == []
    assert sum(o.fit for o in exports) >= 14  # two or more of each of seven tools, where it has two that are read


def test_the_committed_table_is_what_the_commands_do(outcomes, tables, exports) -> None:
    sections = [folder_section(outcomes), table_section(tables), export_section(exports)]
    assert RESULT.read_text(encoding="utf-8") == render(sections)
