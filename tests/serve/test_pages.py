"""The pages in a real browser: make test-pages. Nothing may come from another address, or fail in the console."""

import base64
import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.pages
pytest.importorskip("playwright.sync_api", reason="make test-pages installs Playwright")

from lit_vision.predict.search import Index  # noqa: E402
from lit_vision.results.overlays import color_of_class  # noqa: E402
from lit_vision.weights.model_metadata import SHARED_SPACE  # noqa: E402

PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "is_mobile": True, "has_touch": True}
SETTLED = "[aria-busy]"


@pytest.fixture(scope="module")
def site(serve, listening):
    """Return a function that starts a server on a socket; it returns the address and the client of `serve`."""
    with contextlib.ExitStack() as stack:

        def start(*arguments, **more):
            client = stack.enter_context(serve(*arguments, **more))
            return stack.enter_context(listening(client.app)), client

        yield start


def give(page, files) -> None:
    page.set_input_files("#files", files)
    page.wait_for_selector(".card")
    page.wait_for_selector(SETTLED, state="detached")


def file(name: str, data: bytes) -> dict:
    return {"name": name, "mimeType": "application/octet-stream", "buffer": data}


def drop(page, name: str, data: bytes) -> None:
    """Drop a file on the page, as a file manager does."""
    transfer = page.evaluate_handle(
        """([name, text]) => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([Uint8Array.from(atob(text), (c) => c.charCodeAt(0))], name));
            return transfer;
        }""",
        [name, base64.b64encode(data).decode()],
    )
    page.dispatch_event("#drop", "drop", {"dataTransfer": transfer})
    page.wait_for_selector(".card")
    page.wait_for_selector(SETTLED, state="detached")


def batches(metrics: bytes) -> list[bytes]:
    return [line for line in metrics.splitlines() if line.startswith(b"lit_vision_batch_images_count")]


def canvas_pixels(page) -> np.ndarray:
    """Return the overlay of the first card, (H, W, 4) uint8."""
    width, height, values = page.evaluate(
        """() => {
            const canvas = document.querySelector(".card canvas");
            const context = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d");
            context.drawImage(canvas, 0, 0);
            const data = context.getImageData(0, 0, canvas.width, canvas.height).data;
            return [canvas.width, canvas.height, Array.from(data)];
        }"""
    )
    return np.array(values, np.uint8).reshape(height, width, 4)


@pytest.fixture(scope="module")
def classifier(site, place):
    names = sorted(path.relative_to(place / "images").as_posix() for path in (place / "images").rglob("*.png"))
    index = Index(place, names, np.random.default_rng(0).normal(size=(len(names), 16)).astype(np.float32), {})
    return site("cnn", index=index, index_root=place / "images")


def test_an_image_is_dropped_and_answered(classifier, open_page, upload) -> None:
    address, client = classifier
    page = open_page(address)
    drop(page, "red.png", upload["image"])
    wanted = client.post("/v1/predict", files=upload).json()["results"][0]["predictions"]
    rows = page.locator(".scores li")
    assert [text.split("\n")[0] for text in rows.all_inner_texts()] == [p["label"] for p in wanted]
    assert f"{100 * wanted[0]['score']:.1f} %" in rows.first.inner_text()
    assert page.locator(".extra h4").all_inner_texts()[0].startswith("Why")
    page.wait_for_function("() => [...document.images].every((image) => image.complete && image.naturalWidth > 0)")
    assert page.locator(".nearest img").count() == 6
    with page.expect_download() as download:
        page.get_by_role("button", name="Save answers").click()
    (line,) = Path(download.value.path()).read_text().splitlines()
    assert json.loads(line)["predictions"] == wanted
    page.get_by_role("button", name="Clear").click()
    assert page.locator(".card").count() == 0


def test_the_keyboard_alone_is_enough(classifier, open_page, place) -> None:
    page, choosers = open_page(classifier[0]), []
    page.on("filechooser", lambda chooser: choosers.append(chooser))  # Playwright takes no built-in function
    page.keyboard.press("Tab")
    assert page.evaluate("() => document.activeElement.id") == "files"
    assert page.evaluate("() => getComputedStyle(document.getElementById('drop')).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    page.wait_for_timeout(500)
    (chooser,) = choosers
    chooser.set_files([place / "images/red/000.png", place / "images/green/001.png"])
    page.wait_for_selector(".card")
    page.wait_for_selector(SETTLED, state="detached")
    assert page.locator(".card h3").all_inner_texts() == ["000.png", "001.png"]
    assert page.locator("#status").inner_text() == "2 images done"
    reached = set()
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("() => document.activeElement.id"))
    assert {"top_k", "why", "neighbors", "save", "clear"} <= reached


def test_a_phone_needs_no_sideways_scrolling(classifier, open_page, upload) -> None:
    for scheme in ("light", "dark"):
        page = open_page(classifier[0], **PHONE, color_scheme=scheme)
        give(page, [file("a_very_long_name_of_a_file_without_any_space_" * 4 + ".png", upload["image"])])
        assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
        for button in page.locator("button:visible, .drop").all():
            assert button.bounding_box()["height"] >= 44  # a finger's width
        page.goto(classifier[0] + "/api")
        page.wait_for_selector("body[data-ready]", state="attached")
        assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")


def test_names_are_shown_and_never_run(classifier, open_page, upload) -> None:
    name = '<img src=x onerror="alert(1)"><script>alert(2)<script>.png'
    page = open_page(classifier[0], expected="422")
    give(page, [file(name, upload["image"]), file("bad.png", b"<svg onload=alert(3)>")])
    assert page.locator(".card h3").first.inner_text() == name
    assert page.locator(".card").nth(1).locator(".bad").inner_text() != ""


def test_a_script_of_others_is_blocked(classifier, open_page) -> None:
    page = open_page(classifier[0], expected="Content Security Policy")
    page.evaluate(
        """() => {
            document.body.insertAdjacentHTML("beforeend", "<img src='data:,' onerror='document.title = 1'>");
            const script = document.createElement("script");
            script.textContent = "document.title = 2";
            document.body.append(script);
        }"""
    )
    page.wait_for_timeout(100)
    assert page.title() not in ("1", "2")


def test_another_site_cannot_use_or_frame_it(classifier, site, browser, upload) -> None:
    """A page on another port of this machine: the same site for cookies, another origin."""
    address, client = classifier
    other, _ = site("vit")
    page = browser.new_context(bypass_csp=True).new_page()  # of the attacker's page, which has a policy of its own
    page.goto(other)
    before = client.model_app.metrics.text()
    sent = page.evaluate(
        """async (address) => {
            const form = new FormData();
            form.append("a", new Blob(["x"]), "a.png");
            const tries = [
                fetch(address + "/v1/predict", { method: "POST", body: form }),
                fetch(address + "/v1/predict", { method: "POST", body: form, mode: "no-cors" }).then((a) => a.text()),
                fetch(address + "/v1/model"),
            ];
            return Promise.all(tries.map((one) => one.then((a) => a && "read", () => "refused")));
        }""",
        address,
    )
    assert "read" not in sent
    after = client.model_app.metrics.text()
    assert b'path="/v1/predict",status="403"' in after
    assert batches(before) == batches(after)
    page.set_content(f'<iframe src="{address}/"></iframe>')
    page.wait_for_timeout(300)
    assert [frame.url for frame in page.frames[1:]] == ["chrome-error://chromewebdata/"]
    page.context.close()


def test_the_link_signs_in_and_the_token_leaves_the_address(site, open_page, upload) -> None:
    address, client = site("vit", access={"require_token": True})
    page = open_page(address, f"/#token={client.access.token}")
    assert page.url == f"{address}/"
    assert "token" not in page.evaluate("() => history.state + location.href + document.cookie")
    (cookie,) = page.context.cookies()
    assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
    give(page, [file("a.png", upload["image"])])
    assert page.locator(".scores li").count() == 3
    page.reload()
    page.wait_for_selector("body[data-ready]", state="attached")

    page = open_page(address, expected="401", ready=False)
    page.get_by_label("Open the link").fill("wrong")
    page.keyboard.press("Enter")
    page.wait_for_selector("dialog .bad:not(:empty)")
    page.get_by_label("Open the link").fill(f"{address}/#token={client.access.token}")
    page.keyboard.press("Enter")
    page.wait_for_selector("body[data-ready]", state="attached")
    assert page.locator("dialog").count() == 0


def test_boxes_are_drawn_where_they_are(site, open_page, place) -> None:
    address, client = site("fcos")
    data = (place / "pictures/001.png").read_bytes()
    found = client.post("/v1/predict", files={"a": data}).json()["results"][0]
    page = open_page(address)
    page.locator("#min_score").evaluate("(range) => { range.value = 0; range.dispatchEvent(new Event('input')); }")
    give(page, [file("001.png", data)])
    assert f"{len(found['detections'])} found" in page.locator(".scores").inner_text()
    pixels = canvas_pixels(page)
    scale = pixels.shape[1] / found["width"]
    best = found["detections"][0]  # is drawn last
    x1, _, x2, y2 = (value * scale for value in best["box"])
    label = client.get("/v1/model").json()["classes"].index(best["label"])
    around = pixels[max(0, round(y2) - 2) : round(y2) + 2, round((x1 + x2) / 2)]  # the line at the box's bottom
    assert color_of_class(label) in [tuple(pixel[:3].tolist()) for pixel in around]
    page.locator("#min_score").evaluate(
        "(range) => { range.value = 1; for (const e of ['input', 'change']) range.dispatchEvent(new Event(e)); }"
    )
    assert not canvas_pixels(page).any()
    assert page.locator(".scores li").count() == 1


def test_a_restored_image_stands_beside_the_one_that_came(site, open_page, place) -> None:
    address, _ = site("restorer")
    page = open_page(address)
    give(page, [file("001.png", (place / "pictures/001.png").read_bytes())])
    before, after = page.locator(".pair img").all()
    boxes = [image.bounding_box() for image in (before, after)]
    assert boxes[0]["y"] == boxes[1]["y"]
    assert boxes[0]["x"] + boxes[0]["width"] < boxes[1]["x"]
    sizes = [image.evaluate("(image) => [image.naturalWidth, image.naturalHeight]") for image in (before, after)]
    assert sizes[0] == sizes[1] == list(Image.open(place / "pictures/001.png").size)
    assert page.get_by_text("Save the restored image").get_attribute("href").startswith("data:image/png")


def test_classes_are_drawn_on_the_pixels(site, open_page, place) -> None:
    address, client = site("segmenter")
    data = (place / "pictures/002.png").read_bytes()
    answer = client.post("/v1/predict", params={"include": "mask"}, files={"a": data}).json()["results"][0]
    mask = np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["mask"]))))
    page = open_page(address)
    give(page, [file("002.png", data)])
    pixels = canvas_pixels(page)
    rows = ((np.arange(mask.shape[0]) + 0.5) * pixels.shape[0] / mask.shape[0]).astype(int)
    columns = ((np.arange(mask.shape[1]) + 0.5) * pixels.shape[1] / mask.shape[1]).astype(int)
    shown = pixels[rows][:, columns]  # the middle of each pixel of the image
    assert ((shown[..., 3] == 0) == (mask == 0)).all()  # the background is left as it is
    for label in np.unique(mask[mask > 0]):
        color = shown[mask == label][:, :3].astype(int)
        assert np.abs(color - color_of_class(int(label))).max() <= 2  # the browser multiplies by the transparency
    page.get_by_label("Show classes").uncheck()
    assert page.locator(".card canvas").is_hidden()


def test_masks_of_objects_are_read_as_coco_has_them(site, open_page, place) -> None:
    from faster_coco_eval.core.mask import decode

    address, client = site("masks")
    data = (place / "pictures/001.png").read_bytes()
    found = client.post("/v1/predict", files={"a": data}).json()["results"][0]["detections"]
    page = open_page(address)
    give(page, [file("a.png", data)])
    for detection in found:
        lengths = page.evaluate(
            "async (text) => (await import('/static/overlay.js')).runLengths(text)", detection["segmentation"]["counts"]
        )
        flat = np.repeat(np.arange(len(lengths)) % 2, lengths)
        wanted = decode({**detection["segmentation"], "counts": detection["segmentation"]["counts"].encode()})
        assert np.array_equal(flat.reshape(detection["segmentation"]["size"], order="F"), wanted)
    assert len(found) > 0


def test_a_format_that_browsers_do_not_show_has_a_preview(classifier, open_page) -> None:
    picture = io.BytesIO()
    Image.fromarray(np.full((30, 50, 3), (200, 40, 10), np.uint8)).save(picture, "TIFF")
    page = open_page(classifier[0])
    give(page, [file("a.tif", picture.getvalue())])
    assert page.locator(".picture img").evaluate("(image) => [image.naturalWidth, image.naturalHeight]") == [50, 30]


def test_a_busy_server_is_asked_again(classifier, open_page, upload) -> None:
    address, client = classifier
    page = open_page(address, expected="503")
    client.model_app.waiting += 1000
    page.set_input_files("#files", [file("a.png", upload["image"])])
    page.wait_for_selector(SETTLED)
    page.wait_for_timeout(300)
    assert page.locator(".scores").count() == 0
    client.model_app.waiting -= 1000
    page.wait_for_selector(SETTLED, state="detached")
    assert page.locator(".scores li").count() == 3


def test_the_page_of_the_api_lists_every_call(classifier, open_page) -> None:
    address, client = classifier
    page = open_page(address, "/api")
    calls = [f"{m.upper()} {path}" for path, ms in client.get("/openapi.json").json()["paths"].items() for m in ms]
    assert [" ".join(text.split()) for text in page.locator("h2").all_inner_texts()] == calls
    assert f"curl {address}/v1/model" in page.content()


def test_words_find_pictures(site, open_page, place) -> None:
    names = sorted(path.relative_to(place / "images").as_posix() for path in (place / "images").rglob("*.png"))
    features = np.random.default_rng(0).normal(size=(len(names), 8)).astype(np.float32)
    index = Index(place, names, features, {"space": SHARED_SPACE})
    address, client = site("words", index=index, index_root=place / "images")
    for context in ({}, PHONE):
        page = open_page(address, **context)
        assert page.locator("#words-label").inner_text() == "Find among 6 images by words"
        for text in ("a red hat", "<img src=x onerror=alert(1)>"):
            page.fill("#words", text)
            page.keyboard.press("Enter")
            page.wait_for_function(
                "(text) => document.querySelector('#found h4')?.textContent.includes(text)", arg=text
            )
            wanted = client.get("/v1/search", params={"text": text}).json()["results"]
            shown = [line.split() for line in page.locator("#found li").all_inner_texts()]
            assert shown == [[one["path"], f"{one['score']:.2f}"] for one in wanted]
        page.wait_for_function("() => [...document.images].every((image) => image.complete && image.naturalWidth > 0)")
        assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
        for control in page.locator("#search input, #search button").all():
            assert control.bounding_box()["height"] >= 44
