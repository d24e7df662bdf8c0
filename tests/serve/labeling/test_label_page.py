"""The page of lit-vision label in a real browser (make test-pages): keyboard, phone, a server that is killed."""

import contextlib
import json
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.pages
pytest.importorskip("playwright.sync_api", reason="make test-pages installs Playwright")

from lit_vision.serve.run_server import listen  # noqa: E402

COLORS = {"red": (200, 30, 20), "green": (20, 160, 40), "blue": (30, 40, 210)}
KEYS = {name: str(i + 1) for i, name in enumerate(COLORS)}
SMALL_PHONE = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True}
AWAY = "ERR_"  # what Chromium writes to the console when a server does not answer
NASTY = '<img src=x onerror="alert(1)">'


@pytest.fixture
def colored(tmp_path) -> Path:
    """Return a folder of 45 images of three colors; the color stands in the file's name too."""
    root = tmp_path / "colored"
    root.mkdir()
    for i in range(45):
        name, color = list(COLORS.items())[i % 3]
        noise = np.random.default_rng(i).integers(-20, 20, (24, 32, 3))
        Image.fromarray(np.clip(color + noise, 0, 255).astype(np.uint8)).save(root / f"{i:02d}-{name}.png")
    return root


@pytest.fixture
def site(label, listening, colored):
    """Return a function that starts a labeling on a socket; it returns the address and the client of `label`."""
    with contextlib.ExitStack() as stack:

        def start(**more):
            client = stack.enter_context(label(**{"classes": tuple(COLORS), "root": colored, **more}))
            return stack.enter_context(listening(client.app)), client

        yield start


class Process:
    """`lit-vision label` on one port, which can be killed and started again."""

    def __init__(self, root: Path, out: Path) -> None:
        with listen("127.0.0.1", 0) as listener:
            port = str(listener.getsockname()[1])
        self.address, self.store = f"http://127.0.0.1:{port}", out / "labels.jsonl"
        self.command = [sys.executable, "-m", "lit_vision", "label", str(root), "--out", str(out), "--port", port]
        self.command += ["--classes", ",".join(COLORS)]
        self.running: subprocess.Popen | None = None

    def start(self) -> None:
        self.running = subprocess.Popen(self.command, stdout=subprocess.PIPE, text=True)
        while (line := self.running.stdout.readline()) and not line.startswith("http"):
            pass
        assert line, "the server ended before it listened"
        threading.Thread(target=self.running.stdout.read, daemon=True).start()  # it never waits for a reader

    def kill(self) -> None:
        if self.running is not None:
            self.running.send_signal(signal.SIGKILL)
            self.running.wait()

    def answers(self) -> list[dict]:
        """Return the answers in the store, without those that were taken back."""
        lines = [json.loads(line) for line in self.store.read_text().splitlines()]
        undone = {line["undo"] for line in lines if "undo" in line}
        return [line for line in lines if "kind" in line and line["id"] not in undone]


@pytest.fixture
def process(colored, tmp_path):
    made = Process(colored, tmp_path / "kept")
    made.start()
    yield made
    made.kill()


def wait_for_image(page) -> str:
    """Return the path of the image on the page."""
    page.wait_for_selector("#stage img")
    return page.inner_text("#name")


def color_of(path: str) -> str:
    return path.partition("-")[2].removesuffix(".png")


def answer(page, key: str | None = None) -> str:
    """Press a key, that of the right class unless one is given; return the path that was answered."""
    path = wait_for_image(page)
    page.keyboard.press(key or KEYS[color_of(path)])
    page.wait_for_function("(path) => document.getElementById('name').textContent !== path", arg=path)
    return path


def wait_until_saved(page) -> None:
    page.wait_for_function("() => document.getElementById('saved-text').textContent === 'All saved'")


def test_thirty_images_by_keyboard_with_a_server_that_is_killed(process, open_page) -> None:
    page = open_page(process.address, expected=AWAY)
    done = [answer(page) for _ in range(12)]
    process.kill()  # while the last answers may be on their way
    done += [answer(page) for _ in range(3)]  # the next images are here already
    page.wait_for_selector("#away:not([hidden])")
    assert "3 answers wait" in page.inner_text("#away") or "4 answers wait" in page.inner_text("#away")
    assert page.locator('#recent [data-mark="saving"]').count() >= 3
    process.start()
    wait_until_saved(page)
    page.wait_for_selector("#away", state="hidden")
    done += [answer(page) for _ in range(5)]
    path = wait_for_image(page)
    page.keyboard.press(KEYS[color_of(path)])
    process.kill()
    done.append(path)
    done.append(answer(page))
    second = page.context.new_page()  # the page is closed with answers that were not sent
    page.close()
    process.start()
    second.goto(process.address)
    wait_until_saved(second)
    done += [answer(second) for _ in range(8)]
    wait_until_saved(second)
    assert len(set(done)) == len(done) == 30
    stored = process.answers()
    assert sorted(line["path"] for line in stored) == sorted(done)
    assert len({line["id"] for line in stored}) == 30
    assert all(line["labels"] == [color_of(line["path"])] for line in stored)
    assert second.inner_text("#count").startswith("30 labels")


def test_undo_goes_back_several_steps_and_into_an_earlier_visit(site, open_page) -> None:
    address, client = site()
    page = open_page(address)
    first, second, third = answer(page), answer(page, "0"), answer(page, "ArrowRight")
    wait_until_saved(page)
    kinds = {client.labeling.images.paths[n]: a.kind for n, a in client.labeling.answers().items()}
    assert kinds == {first: "label", second: "unsure", third: "skip"}
    for path in (third, second):
        page.keyboard.press("ArrowLeft")
        assert wait_for_image(page) == path
    wait_until_saved(page)
    assert len(client.labeling.answers()) == 1
    page.reload()
    page.wait_for_selector("#recent li")
    page.keyboard.press("Control+z")
    page.wait_for_function("(path) => document.getElementById('name').textContent === path", arg=first)
    wait_until_saved(page)
    assert client.labeling.answers() == {}
    page.keyboard.press("ArrowLeft")
    assert page.inner_text("#status") == "Nothing to undo."


def test_names_of_classes_are_shown_and_never_run(site, open_page) -> None:
    address, client = site(classes=())
    page = open_page(address)
    wait_for_image(page)
    assert page.evaluate("() => document.activeElement.id") == "new-name"  # the first class has to be made
    page.keyboard.type(NASTY)
    page.keyboard.press("Enter")
    page.wait_for_selector("#recent li")
    wait_until_saved(page)
    assert page.locator("#classes .name").inner_text() == NASTY
    assert page.locator("#recent .text").inner_text() == NASTY
    page.keyboard.press("F2")
    page.locator("#rename input").fill("<b>dog</b>")
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.querySelector('#classes .name').textContent === '<b>dog</b>'")
    page.keyboard.press("Escape")
    assert page.locator("#recent .text").inner_text() == "<b>dog</b>"
    assert [a.labels for a in client.labeling.answers().values()] == [("<b>dog</b>",)]
    page.get_by_role("button", name="Review").click()
    page.get_by_role("button", name="All answers").click()
    assert page.locator("#review-items h3").inner_text() == "<b>dog</b>"
    page.keyboard.press("?")
    assert page.locator("#keys").is_visible()


def test_two_classes_become_one_only_when_that_is_confirmed(site, open_page) -> None:
    address, client = site()
    page = open_page(address)
    answer(page, "1"), answer(page, "2")
    page.keyboard.press("F2")
    page.locator("#rename input").first.fill("green")
    page.keyboard.press("Enter")
    assert "green is a class already" in page.inner_text("#rename-note")
    assert len(client.labeling.class_list()) == 3
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.querySelectorAll('#classes button').length === 2")
    assert {a.labels for a in client.labeling.answers().values()} == {("green",)}


def test_several_labels_are_toggled_and_confirmed(site, open_page) -> None:
    address, client = site(multiple=True)
    page = open_page(address)
    path = wait_for_image(page)
    for key in ("1", "2", "3", "2"):
        page.keyboard.press(key)
    assert page.locator('#classes [aria-pressed="true"] .name').all_inner_texts() == ["red", "blue"]
    answer(page, "Enter")
    answer(page, "Enter")  # of none of the classes
    page.get_by_label("Several labels").uncheck()
    answer(page, "2")
    wait_until_saved(page)
    given = {client.labeling.images.paths[n]: a.labels for n, a in client.labeling.answers().items()}
    assert given[path] == ("red", "blue")
    assert Counter(given.values()) == {("red", "blue"): 1, (): 1, ("green",): 1}


def test_an_answer_of_another_browser_is_shown_and_asked_about(site, open_page) -> None:
    address, client = site()
    page = open_page(address, expected="409")
    for key, button, labels in (("1", "Keep green", ["green"]), ("1", "Use red", ["red"])):
        number = client.labeling.images.paths.index(wait_for_image(page))
        body = {"number": number, "kind": "label", "labels": ["green"], "id": f"other-{number}", "replaces": None}
        assert client.post("/v1/label/answers", json=body).status_code == 200
        page.keyboard.press(key)
        page.wait_for_selector("#conflict[open]")
        assert "“green”" in page.inner_text("#conflict-text")
        page.get_by_role("button", name=button).click()
        wait_until_saved(page)
        assert client.get(f"/v1/label/item/{number}").json()["answer"]["labels"] == labels


def test_a_file_that_changed_is_asked_again(site, open_page, colored) -> None:
    address, client = site()
    page = open_page(address, expected="410")
    path = wait_for_image(page)
    Image.new("RGB", (40, 40)).save(colored / path)
    page.keyboard.press("1")
    page.wait_for_selector('#recent [data-mark="failed"]')
    assert f"{path} has changed" in page.inner_text("#status")
    assert client.labeling.answers() == {}


def test_a_phone_needs_no_sideways_scrolling(site, open_page) -> None:
    address, _ = site(classes=("a_long_name_of_a_class_without_any_space" * 2, *COLORS, *map(str, range(12))))
    for scheme in ("light", "dark"):
        page = open_page(address, **SMALL_PHONE, color_scheme=scheme)
        wait_for_image(page)
        page.locator("#classes button").nth(1).tap()
        page.wait_for_selector("#recent li")
        for view in ("Label", "Review", "Finish"):
            page.get_by_role("button", name=view, exact=True).tap()
            page.wait_for_timeout(200)
            assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth"), view
            for button in page.locator("button:visible, .button:visible").all():
                assert button.bounding_box()["height"] >= 44, button.inner_text()  # a finger's width


def test_the_keyboard_alone_is_enough(site, open_page) -> None:
    address, client = site()
    page = open_page(address)
    wait_for_image(page)
    reached = []
    for _ in range(30):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("() => document.activeElement.id || document.activeElement.dataset.name || ''"))
    assert [name for name in reached if name in COLORS][:3] == list(COLORS)
    assert {"help", "undo", "skip", "unsure", "add", "edit", "similar"} <= set(reached)
    page.locator('[data-name="green"]').focus()
    assert page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle") == "solid"
    answer(page, "Enter")  # presses the button that has the focus
    page.keyboard.press("+")
    page.keyboard.type("12 cats")  # no key of a class counts here
    page.keyboard.press("Escape")
    wait_until_saved(page)
    assert [a.labels for a in client.labeling.answers().values()] == [("green",)]
    page.keyboard.press("?")
    page.keyboard.press("1")  # nor here
    page.keyboard.press("Escape")
    assert page.locator("#keys").is_hidden()
    assert len(client.labeling.answers()) == 1


def test_review_search_and_the_files_at_the_end(site, open_page) -> None:
    address, client = site(classes=(*COLORS, "rare"))
    paths = client.labeling.images.paths
    rows = np.stack([np.eye(4)[list(COLORS).index(color_of(path))] for path in paths]).astype(np.float32)
    client.learner.features.rows = 9 * rows + np.random.default_rng(0).normal(size=rows.shape).astype(np.float32)
    for number in range(21):
        name = color_of(paths[number])
        client.labeling.answer(number, "label", ["blue" if number == 0 else name], f"a{number}", None)
    client.labeling.answer(21, "label", ["rare"], "a21", None)
    page = open_page(address, "/#review")
    row = page.locator("#review-items > li", has=page.get_by_role("button", name="Open 00-red.png"))
    row.get_by_role("button", name="Change to red").click()
    row.get_by_text("Saved: Change to red").wait_for()
    assert client.labeling.answer_of(0).labels == ("red",)
    page.get_by_role("button", name="Few images").click()
    page.get_by_role("button", name="Is rare").first.click()
    page.get_by_text("Saved: Is rare").wait_for()
    assert client.labeling.class_list()[-1]["images"] == 2

    page.get_by_role("button", name="Label", exact=True).click()
    color = color_of(wait_for_image(page))
    page.keyboard.press(".")
    tiles = page.locator('#like-images [aria-pressed="false"]')
    tiles.first.wait_for()
    titles = tiles.evaluate_all("(all) => all.map((one) => one.title)")
    alike = [title for title in titles if color_of(title) == color][:2]
    for path in alike:
        page.locator(f'#like-images [title="{path}"]').click()
    page.locator("#like-class").select_option(color)
    page.get_by_role("button", name="Label 2 images").click()
    wait_until_saved(page)
    assert [client.labeling.answer_of(paths.index(path)).labels for path in alike] == [(color,)] * 2

    page.get_by_role("button", name="Finish").click()
    page.get_by_role("button", name="Write the files").click()
    page.wait_for_selector("#finished:not([hidden])")
    assert page.inner_text("#next").startswith("lit-vision study ")
    with page.expect_download() as download:
        page.get_by_role("link", name="CSV").click()
    table = Path(download.value.path()).read_text().splitlines()
    assert len(table) == 1 + client.labeling.state()["labeled"]
