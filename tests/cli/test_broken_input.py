"""Broken input of every kind to every command: exit code 1 or 2, and one line that names what was given.

FILES lists each argument of each command that names a file or a folder, KINDS what may lie there instead of the right
thing. NUMBERS and WORDS do the same for values. A new argument gets a row here.
"""

import builtins
import io
import os
from pathlib import Path

import numpy as np
import pytest
from toy_models import make_classifier, write_generator_run, write_images, write_run
from toy_restorer import write_restorer_run
from toy_videos import make_video_classifier, numbered_frames, write_movie

from lit_vision.cli.main import COMMANDS, main

RECIPE = """
trainer: {max_epochs: 1, accelerator: cpu, limit_train_batches: 1, enable_progress_bar: false}
model: {class_path: toy_run.ToyNet}
data: {class_path: toy_run.ToyData}
"""
GARBAGE = np.random.default_rng(0).integers(0, 256, 3000, dtype=np.uint8).tobytes()
KINDS = {
    "missing": None,
    "folder": "",
    "empty": b"",
    "garbage": GARBAGE,
    "utf16": RECIPE.encode("utf-16"),
    "latin1": "größe: {é: ü}\nbild,klasse\ngrün.png,süß".encode("latin-1"),
}
SLOW = {"utf16", "latin1"}  # for readers of binary files, they are further garbage

# command with {} for the file, its ending, and the kinds of KINDS that are right there
FILES = [
    ("fit --config {}", ".yaml", ""),
    ("fit --config toy.yaml --run_dir {}", ".txt", "missing folder"),
    ("fit --config toy.yaml --run_dir q --resume {}", ".ckpt", ""),
    ("validate --ckpt_path {}", ".ckpt", ""),
    ("validate --config toy.yaml --ckpt_path {}", ".ckpt", ""),
    ("validate --config {} --ckpt_path run/checkpoints/last.ckpt", ".yaml", ""),
    ("test --ckpt_path {}", ".ckpt", ""),
    ("study {}", "", ""),
    ("study {}", ".pack", ""),
    ("plan {} --images 32", ".yaml", ""),
    ("sweep --config {} --space space.yaml", ".yaml", ""),
    ("sweep --config toy.yaml --space {}", ".yaml", ""),
    ("sweep --config toy.yaml --space space.yaml --run_dir {}", ".txt", "missing folder"),
    ("choose {} --model run", "", ""),
    ("choose {} --model run", ".pack", ""),
    ("choose set --ignore_folders --num 3 --model {}", ".ckpt", ""),
    ("choose set --num 3 --model run --label_file {}", ".csv", ""),
    ("choose set --ignore_folders --num 3 --model run --run_dir {}", ".txt", "missing folder"),
    ("predict --model {} set/test --out p.csv", ".ckpt", ""),
    ("predict --model {} set/test --out p.csv", ".safetensors", ""),
    ("predict --model {} set/test --out p.csv --trust_pt2", ".pt2", ""),
    ("predict --model run {} --out p.csv", ".png", ""),
    ("predict --model run {} --out p.csv", "", ""),
    ("predict --model clips {} --out p.csv", ".mp4", ""),
    ("predict --model clips {} --out p.csv", "", ""),
    ("predict --model run set/test --out {} --overwrite", ".csv", "missing empty garbage utf16 latin1"),
    ("predict --model run set/test --out {}/x.csv", ".csv", "missing folder"),
    ("predict --model run {} --out p.csv --shard 0/1", ".png", "empty garbage utf16 latin1"),
    ("predict --model {} set/test --out p.csv --engine ray", ".ckpt", ""),
    ("predict --merge --out {}", ".csv", ""),
    ("embed --merge --out {}", ".safetensors", ""),
    ("predict --model run set/test --out p.csv --classes {}", ".txt", ""),
    ("predict --model run set/test --out p.csv --classes toy.yaml --template {}", ".txt", ""),
    ("predict --model {} set/test --out p.csv --classes toy.yaml", ".ckpt", ""),
    ("stylize {} --style set/test/red/000.png --out s.png", ".png", ""),
    ("stylize set/test/red/000.png --style {} --out s.png", ".png", ""),
    ("stylize set/test/red/000.png --style set/test/red/000.png --out {}", ".png", "missing"),
    ("restore --model {} set/test --out r", ".ckpt", ""),
    ("restore --model restorer {} --out r", ".png", ""),
    ("restore --model restorer set/test --out {}", ".txt", "missing folder"),
    ("restore --model holes set/test/red/000.png --out r --mask {}", ".png", "folder"),
    ("generate --model {} --out g", ".ckpt", ""),
    ("generate --model gan --classes {} --out g", ".txt", ""),
    ("generate --model gan --out {}", ".png", "missing folder"),
    ("serve {}", ".ckpt", ""),
    ("serve run --classes {}", ".txt", ""),
    ("serve run --classes toy.yaml --template {}", ".txt", ""),
    ("serve {} --key k.key", ".sealed", ""),
    ("serve run --index {}", ".safetensors", ""),
    ("serve run --index index.safetensors --index_root {}", "", "folder"),
    ("label {}", "", ""),
    ("label {}", ".pack", ""),
    ("label set --out {}", ".txt", "missing folder"),
    ("import {} --out w.safetensors", ".pth", ""),
    ("import {} --out w.safetensors", ".safetensors", ""),
    ("import {} --out w.safetensors", "", ""),
    ("export {} --format safetensors --out e.safetensors", ".ckpt", ""),
    ("export {} --format safetensors --out e.safetensors", ".safetensors", ""),
    ("export {} --format onnx --out e.onnx --classes toy.yaml", ".ckpt", ""),
    ("export run --format onnx --out e.onnx --classes {}", ".txt", ""),
    ("export run --format onnx --out e.onnx --classes toy.yaml --template {}", ".txt", ""),
    ("prune {} --keep 0.5 --out o.safetensors", ".ckpt", ""),
    ("prune {} --keep 0.5 --out o.safetensors", ".safetensors", ""),
    ("prune run --keep 0.5 --out {}/o.safetensors", ".txt", "missing folder"),
    ("protect keygen {}", ".key", "missing"),
    ("protect seal {} --key k.key", ".ckpt", "empty garbage utf16 latin1"),  # of a model nothing is parsed
    ("protect seal run --key {}", ".key", ""),
    ("protect seal run --passphrase_file {}", ".txt", "garbage utf16 latin1"),
    ("protect seal run --key k.key --out {}/o.sealed", ".txt", "missing folder"),
    ("protect unseal {} --key k.key", ".sealed", ""),
    ("protect unseal run.sealed --key {}", ".key", ""),
    ("protect sign {} --key s.key", ".ckpt", "empty garbage utf16 latin1"),
    ("protect sign run --key {}", ".key", ""),
    ("protect verify {} --key s.key.pub", ".ckpt", ""),
    ("protect verify run --key {}", ".pub", ""),
    ("protect check {} --key k.key", ".ckpt", ""),
    ("protect check run --key {}", ".key", ""),
    ("predict --model {} set/test --out p.csv --key k.key", ".sealed", ""),
    ("predict --model run set/test --out p.csv --key {}", ".key", ""),
    ("predict --model run set/test --out p.csv --passphrase_file {}", ".txt", "garbage utf16 latin1"),
    ("predict --model run set/test --out p.csv --require_signature {}", ".pub", ""),
    ("embed --model {} set/test --out i.safetensors", ".ckpt", ""),
    ("embed --model run {} --out i.safetensors", ".png", ""),
    ("search --index {} --query set/test/red/000.png --model run", ".safetensors", ""),
    ("search --index index.safetensors --query {} --model run", ".png", ""),
    ("search --index index.safetensors --query set/test/red/000.png --model {}", ".ckpt", ""),
    ("search --index index.safetensors --text hat --model {}", ".ckpt", ""),
    ("search --index index.safetensors --text_file {} --model run", ".txt", ""),
    ("fewshot {} --model run", "", ""),
    ("fewshot set --model {}", ".ckpt", ""),
    ("data medmnist {} --out mm", ".npz", ""),
    ("data trees --archive {} --out tt", ".whl", ""),
    ("data emoji --archive {} --out ee", ".tgz", ""),
    ("data clipart --archive {} --out ee", ".deb", ""),
    ("data stamps --archive {} --out ee", ".deb", ""),
    ("data frames {} --out ff", ".mp4", ""),
    ("data frames {} --out ff", "", ""),
    ("data frames clip.mkv --out {}", ".txt", "missing folder"),
    ("data patches --out {}", ".txt", "missing folder"),
    ("data fashion --out {}", ".txt", "missing folder"),
    ("doctor {}", "", "folder"),  # an empty folder: a report that fails
    ("doctor {}", ".pack", "folder"),
    ("doctor set --recipe {}", ".yaml", ""),
    ("pack {} --out o", "", ""),
    ("pack set --out o --quarantine {}", ".txt", "empty latin1"),
    ("pack set --out {}", ".shards", "missing folder"),
    ("pack set --out {}/o", ".txt", "missing folder"),
    ("fewshot set --model run --shots 1 --seeds 1 --out {}", ".csv", "missing empty garbage utf16 latin1"),
    ("search --index index.safetensors --duplicates 0.9 --out {}", ".csv", "missing empty garbage utf16 latin1"),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("broken")
    write_run(place / "run", make_classifier())
    write_run(place / "clips", make_video_classifier())
    write_movie(place / "clip.mkv", numbered_frames(10))
    write_restorer_run(place / "restorer")
    write_restorer_run(place / "holes", degradations=["stroke_holes 0.2"])
    write_generator_run(place / "gan")
    for seed, (split, n) in enumerate((("train", 18), ("val", 6), ("test", 6))):
        write_images(place / "set" / split, n, seed)
    (place / "toy.yaml").write_text(RECIPE)
    for words in (["k.key"], ["s.key", "--signing"]):
        assert main(["protect", "keygen", str(place / words[0]), *words[1:]]) == 0
    sealed = str(place / "run.sealed")
    assert main(["protect", "seal", str(place / "run"), "--key", str(place / "k.key"), "--out", sealed]) == 0
    (place / "space.yaml").write_text("model.lr: {values: [0.1, 0.01]}\n")
    index = str(place / "index.safetensors")
    assert main(["embed", "--model", str(place / "run"), str(place / "set/test"), "--out", index]) == 0
    return place


@pytest.fixture
def place(made: Path, monkeypatch) -> Path:
    monkeypatch.chdir(made)
    return made


def one_line(words: list[str], capsys) -> str:
    """Run a command that must fail; return its error."""
    code = main(words)
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("lit-vision: error: ")]
    assert code in (1, 2), error
    assert len(lines) == 1, error
    assert "Traceback" not in error
    return lines[0]


def cases() -> list:
    found = []
    for command, ending, right in FILES:
        text = (
            command.split()[0] in ("fit", "validate", "plan", "sweep") and ending == ".yaml"
        ) or "--recipe" in command
        for kind in KINDS:
            if kind in right.split():
                continue
            slow = kind in SLOW and not text and "--quarantine" not in command
            marks = [pytest.mark.slow] if slow else []
            found.append(pytest.param(command, ending, kind, marks=marks, id=f"{command}-{ending}-{kind}"))
    return found


@pytest.mark.parametrize(("command", "ending", "kind"), cases())
def test_a_file_that_is_not_what_it_should_be(command: str, ending: str, kind: str, place, capsys) -> None:
    path = Path(kind + ending)
    content = KINDS[kind]
    if content == "":
        path.mkdir(exist_ok=True)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    error = one_line(command.format(path).split(), capsys)
    assert path.name in error
    if isinstance(content, bytes):
        assert path.read_bytes() == content  # what was there is still there


# ---- values

HUGE = "1" + "0" * 40
NUMBERS = [  # command, its flag, what is refused
    ("fit --config toy.yaml --run_dir q", "--trainer.max_epochs", (f"-{HUGE}", "nan", "1e400")),
    ("fit --config toy.yaml --run_dir q", "--seed_everything", (HUGE, f"-{HUGE}", "nan")),
    ("fit --config toy.yaml --run_dir q", "--trainer.devices", (HUGE, f"-{HUGE}", "nan")),
    ("fit --config toy.yaml --run_dir q", "--data.batch_size", (HUGE, "nan")),
    ("study set", "--size", (HUGE, f"-{HUGE}", "nan")),
    ("study set", "--budget", (f"-{HUGE}", "nan")),
    ("study set", "--seeds", (f"-{HUGE}", "nan")),
    ("study set", "--labels", (f"-{HUGE}", "nan")),
    ("study set", "--epochs", (HUGE, "nan")),
    ("plan toy.yaml --images 32", "--nodes", (HUGE, f"-{HUGE}", "nan")),
    ("plan toy.yaml", "--images", (HUGE, f"-{HUGE}", "nan")),
    ("sweep --config toy.yaml --space space.yaml", "--trials", (HUGE, f"-{HUGE}", "nan")),
    ("sweep --config toy.yaml --space space.yaml", "--seeds", (HUGE, f"-{HUGE}", "nan")),
    ("sweep --config toy.yaml --space space.yaml", "--seed", (HUGE, f"-{HUGE}", "nan")),
    ("sweep --config toy.yaml --space space.yaml --finish", "--finish_seeds", (HUGE, "1", "nan")),
    ("choose set --ignore_folders --model run", "--num", (HUGE, f"-{HUGE}", "nan")),
    ("choose set --ignore_folders --model run", "--seed", (f"-{HUGE}", "nan")),
    ("choose set --ignore_folders --model run", "--frozen_size", (HUGE, f"-{HUGE}", "nan")),
    ("predict --model run set/test --out p.csv", "--batch_size", (f"-{HUGE}", "nan")),
    ("predict --model run set/test --out p.csv", "--workers", (f"-{HUGE}", "nan")),
    ("predict --model run set/test --out p.csv", "--shard", (f"{HUGE}/{HUGE}", "1/1", "0/0", "-1/2", "nan")),
    ("predict --model run set/test --out p.csv --engine ray", "--shards", (HUGE, f"-{HUGE}", "nan")),
    ("predict --model run set/test --out p.csv", "--top_k", (f"-{HUGE}", "nan")),
    ("predict --model run set/test --out p.csv", "--min_score", (HUGE, f"-{HUGE}", "nan")),
    ("predict --model clips clip.mkv --out p.csv", "--step", (HUGE, f"-{HUGE}", "nan")),
    ("predict --model clips clip.mkv --out p.csv", "--fps", (HUGE, f"-{HUGE}", "nan")),
    *(
        ("stylize x.png --style y.png --out s.png", flag, (HUGE, f"-{HUGE}", "nan"))
        for flag in ("--size", "--steps", "--style_weight", "--smoothness", "--noise", "--seed")
    ),
    ("restore --model restorer set/test --out r", "--tile", (HUGE, f"-{HUGE}", "nan")),
    ("generate --model gan --out g", "--num", (HUGE, f"-{HUGE}", "nan")),
    ("generate --model gan --out g", "--seed", (HUGE, f"-{HUGE}", "nan")),
    ("generate --model gan --out g", "--batch_size", (HUGE, f"-{HUGE}", "nan")),
    ("generate --model gan --out g", "--steps", (HUGE, "nan")),
    ("generate --model gan --out g", "--guidance", (f"-{HUGE}",)),
    ("serve run", "--port", (HUGE, f"-{HUGE}", "nan")),
    ("serve run", "--batch_size", (HUGE, f"-{HUGE}", "nan")),
    ("serve run", "--batch_wait", (HUGE, f"-{HUGE}", "nan")),
    ("serve run", "--workers", (HUGE, f"-{HUGE}", "nan")),
    ("serve run", "--max_images", (HUGE, f"-{HUGE}", "nan")),
    ("serve run", "--max_mb", (HUGE, f"-{HUGE}", "nan")),
    ("serve run", "--max_megapixels", (HUGE, f"-{HUGE}", "nan")),
    ("serve run", "--queue", (HUGE, f"-{HUGE}", "nan")),
    ("label set", "--port", (HUGE, f"-{HUGE}", "nan")),
    ("import w.pth --out w.safetensors", "--img_size", (f"-{HUGE}", "nan")),
    ("export run --format onnx --int8 set", "--calibration", (f"-{HUGE}", "nan")),
    ("embed --model run set/test --out i.safetensors", "--batch_size", (f"-{HUGE}", "nan")),
    ("embed --model run set/test --out i.safetensors", "--seed", (HUGE, f"-{HUGE}", "nan")),
    ("search --index index.safetensors", "--duplicates", (HUGE, f"-{HUGE}", "nan")),
    ("search --index index.safetensors --query x.png --model run", "--top_k", (f"-{HUGE}", "nan")),
    ("search --index index.safetensors --text hat --model run", "--top_k", (f"-{HUGE}",)),
    ("fewshot set --model run", "--shots", (HUGE, f"-{HUGE}", "nan")),
    ("fewshot set --model run", "--seeds", (f"-{HUGE}", "nan")),
    ("data fashion --out f", "--seed", (HUGE, f"-{HUGE}", "nan")),
    ("data stamps --archive x --out f", "--side", (HUGE, f"-{HUGE}", "nan")),
    ("data stamps --archive x --out f", "--seed", (HUGE, f"-{HUGE}", "nan")),
    ("data scenes --out f", "--train", (HUGE, f"-{HUGE}", "nan")),
    ("data frames clip.mkv --out f", "--fps", (HUGE, f"-{HUGE}", "nan")),
    ("data frames clip.mkv --out f", "--short_side", (HUGE, f"-{HUGE}", "nan")),
    ("data frames clip.mkv --out f", "--workers", (f"-{HUGE}", "nan")),
    ("doctor set", "--workers", (f"-{HUGE}", "nan")),
    ("pack set --out o", "--workers", (f"-{HUGE}", "nan")),
    ("pack set --out o", "--short_side", (f"-{HUGE}", "nan")),
    ("pack set --out o", "--shards", (HUGE, f"-{HUGE}", "nan")),
    ("pack set --out o", "--group_by", (HUGE, f"-{HUGE}", "nan")),
    ("pack set --out o", "--quality", (HUGE, f"-{HUGE}", "nan")),
]


@pytest.mark.parametrize(
    ("command", "flag", "value"),
    [pytest.param(c, f, v, id=f"{c.split()[0]} {f} {v[:4]}") for c, f, values in NUMBERS for v in (*values, "word")],
)
def test_a_number_that_is_none_or_out_of_range(command: str, flag: str, value: str, place, capsys) -> None:
    assert flag.lstrip("-") in one_line([*command.split(), flag, value], capsys)
    assert not Path("f").exists()


@pytest.mark.parametrize(
    "command",
    [
        "predict --model run set/test --out p.csv --device tpu",
        "stylize x.png --style y.png --out s.png --device tpu",
        "restore --model restorer set/test --out r --device tpu",
        "predict --model run set/test --out p.csv --captions nothing",
        "serve run --captions nothing",
        "serve run --device tpu",
        "embed --model run set/test --out i.safetensors --index_type nothing",
        "embed --model run set/test --out i.safetensors --engine nothing",
        "generate --model gan --out g --sampler nothing",
        "export run --format tflite",
        "fewshot set --model run --metric manhattan",
        "fewshot set --model run --methods nothing",
        "data imagenet --out f",
        "data frames clip.mkv --out f --format nothing",
        "fit --config toy.yaml --trainer.accelerator tpu",
        "study set --inits nothing",
        "study set --protocols nothing",
        "choose set --strategy nothing",
        "study set --choose nothing",
        "sweep --config toy.yaml --space space.yaml --sampler nothing",
        "sweep --config toy.yaml --space space.yaml --pruner nothing",
    ],
)
def test_an_unknown_word(command: str, place, capsys) -> None:
    word = next(word for word in command.split() if word in ("tpu", "tflite", "manhattan", "imagenet", "nothing"))
    assert word in one_line(command.split(), capsys)


COMPLETE = {  # each command with what it requires
    "fit": "--config toy.yaml",
    "validate": "--config toy.yaml --ckpt_path run/checkpoints/last.ckpt",
    "test": "--config toy.yaml --ckpt_path run/checkpoints/last.ckpt",
    "study": "set",
    "plan": "toy.yaml",
    "sweep": "--config toy.yaml --space space.yaml",
    "choose": "set",
    "predict": "--model run set/test --out p.csv",
    "stylize": "x.png --style y.png --out s.png",
    "restore": "--model restorer set/test --out r",
    "generate": "--model gan --out g",
    "serve": "run",
    "label": "set",
    "import": "w.pth --out w.safetensors",
    "prune": "run --keep 0.5 --out o.safetensors",
    "protect": "verify run --key s.key.pub",
    "export": "run --format safetensors",
    "embed": "--model run set/test --out i.safetensors",
    "search": "--index index.safetensors --duplicates 0.9",
    "fewshot": "set --model run",
    "data": "fashion --out f",
    "doctor": "set",
    "pack": "set --out o",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_an_unknown_flag_and_an_unknown_command(command: str, place, capsys) -> None:
    assert "--nonsense" in one_line([command, *COMPLETE[command].split(), "--nonsense", "3"], capsys)
    assert command + "x" in one_line([command + "x"], capsys)


@pytest.mark.parametrize(
    "command",
    [f"{start} --name {name}" for start in ("fit --config toy.yaml", "label set") for name in ("../x", "/x")],
)
def test_outside_the_root(command: str, place, capsys) -> None:
    assert "--name" in one_line(command.split(), capsys)


# ---- what the system does: simulated, because root may read everything

OPENED = [  # command, and the file that it opens with Python
    ("fit --config {}", "locked.yaml"),
    ("validate --config toy.yaml --ckpt_path {}", "locked.ckpt"),
    ("test --config toy.yaml --ckpt_path {}", "locked.ckpt"),
    ("study {}", "locked.pack"),
    ("plan {}", "locked.yaml"),
    ("sweep --config {} --space space.yaml", "locked.yaml"),
    ("sweep --config toy.yaml --space {}", "locked.yaml"),
    ("choose {}", "locked.pack"),
    ("predict --model {} set/test --out p.csv", "locked.ckpt"),
    ("stylize {} --style set/test/red/000.png --out s.png", "locked.png"),
    ("restore --model {} set/test --out r", "locked.ckpt"),
    ("restore --model holes set/test --out r --mask {}", "locked.png"),
    ("generate --model {} --out g", "locked.ckpt"),
    ("serve {}", "locked.ckpt"),
    ("prune {} --keep 0.5 --out o.safetensors", "locked.ckpt"),
    ("protect seal {} --key k.key", "locked.ckpt"),
    ("protect seal run --key {}", "locked.key"),
    ("protect verify run --key {}", "locked.pub"),
    ("import {} --out w.safetensors", "locked.pth"),
    ("export {} --format safetensors --out e.safetensors", "locked.ckpt"),
    ("export run --format onnx --out e.onnx --classes {}", "locked.txt"),
    ("predict --model run set/test --out p.csv --classes {}", "locked.txt"),
    ("serve run --classes {}", "locked.txt"),
    ("search --index index.safetensors --text_file {} --model run", "locked.txt"),
    ("embed --model {} set/test --out i.safetensors", "locked.ckpt"),
    ("search --index index.safetensors --query set/test/red/000.png --model {}", "locked.ckpt"),
    ("fewshot set --model {}", "locked.ckpt"),
    ("data medmnist {} --out mm", "locked.npz"),
    ("data trees --archive {} --out tt", "locked.whl"),
    ("data emoji --archive {} --out ee", "locked.tgz"),
    ("data clipart --archive {} --out ee", "locked.deb"),
    ("data stamps --archive {} --out ee", "locked.deb"),
    ("doctor {}", "locked.pack"),
    ("pack set --out o --quarantine {}", "locked.txt"),
]


@pytest.fixture
def opening(place: Path, monkeypatch):
    """Return a function that lets each later opening of a file named locked.* raise an error."""

    def fail_with(error: type[BaseException]) -> None:
        def guard(original):
            def opened(file, *args, **kwargs):
                if isinstance(file, str | os.PathLike) and Path(file).name.startswith("locked."):
                    raise error(13, "Permission denied", str(file)) if error is PermissionError else error
                return original(file, *args, **kwargs)

            return opened

        for module in (builtins, io, os):
            monkeypatch.setattr(module, "open", guard(module.open))

    return fail_with


@pytest.mark.parametrize(("command", "name"), OPENED)
def test_no_permission(command: str, name: str, opening, capsys) -> None:
    Path(name).write_bytes(GARBAGE)
    opening(PermissionError)
    assert name in one_line(command.format(name).split(), capsys)


@pytest.mark.parametrize(("command", "name"), OPENED)
def test_interrupted_by_ctrl_c(command: str, name: str, opening, capsys) -> None:
    Path(name).write_bytes(GARBAGE)
    opening(KeyboardInterrupt)
    assert main(command.format(name).split()) == 130
    error = capsys.readouterr().err
    assert "Ctrl-C" in error
    assert "Traceback" not in error


def test_every_command_is_in_the_tables() -> None:
    assert {command.split()[0] for command, *_ in FILES} == set(COMMANDS)
    # label opens its store by a descriptor, and weights in the background: tests/serve/labeling has both
    assert {command.split()[0] for command, *_ in OPENED} | {"label"} == set(COMMANDS)
