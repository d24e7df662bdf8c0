"""The package's own names: light to import, and with the options of the commands."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
from toy_models import write_images

import lit_vision
from lit_vision.cli import choose, doctor, embed, export, predict, prune, restore, study, stylize
from lit_vision.predict.api import LoadedModel

SOURCE = Path(lit_vision.__file__).parent


def test_import_is_light() -> None:
    code = "import sys, lit_vision; print(sorted({'torch', 'numpy', 'timm', 'lightning'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_names_are_functions_and_no_room_has_one() -> None:
    names = set(lit_vision.__all__) - {"__version__"}
    functions = {
        "run_study",
        "choose_images",
        "export_model",
        "prune_model",
        "check_folder",
        "restore_images",
        "stylize",
    }
    assert names == {"load", *functions} <= set(dir(lit_vision))
    assert all(inspect.getdoc(getattr(lit_vision, name)) for name in names)
    assert not names & {path.stem for path in SOURCE.iterdir()}
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        lit_vision.lode  # noqa: B018


def options(parser) -> dict:
    return {action.dest: action.default for action in parser._actions if action.dest != "help"}


def defaults(function) -> dict:
    parameters = inspect.signature(function).parameters.values()
    return {p.name: None if p.default is p.empty else p.default for p in parameters if p.name != "self"}


@pytest.mark.parametrize(
    ("function", "parser"),
    [
        (lit_vision.run_study, study.parser),
        (lit_vision.choose_images, choose._parser),
        (lit_vision.export_model, export._parser),
        (lit_vision.prune_model, prune._parser),
        (lit_vision.check_folder, doctor._parser),
        (lit_vision.restore_images, restore._parser),
        (lit_vision.stylize, stylize._parser),
    ],
)
def test_a_function_has_the_options_of_its_command(function, parser) -> None:
    assert defaults(function) == options(parser())


def test_a_model_has_the_options_of_predict() -> None:
    found = options(predict._parser()) | options(embed._parser())
    for function in (lit_vision.load, LoadedModel.predict, LoadedModel.embed):
        here = {
            name: value for name, value in defaults(function).items() if name not in ("threads", "errors", "templates")
        }
        assert here == {name: found[name] for name in here}


def test_check_folder_returns_and_writes_the_report(tmp_path) -> None:
    write_images(tmp_path / "data" / "train", 6)
    write_images(tmp_path / "data" / "test", 3, seed=1)
    report = lit_vision.check_folder(tmp_path / "data", out=tmp_path / "out", workers=1)
    assert (report["images"], report["fit"]) == (9, True)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"doctor.json", "quarantine.txt"}
