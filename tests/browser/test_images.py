"""Images in, boxes and rows out, in a real browser."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from detserve.nms import non_maximum_suppression
from photos import jpeg
from tests.browser.conftest import Visit, photo

PHOTOS = ("astronaut", "coffee", "chelsea", "motorcycle_left")


def shown(visit: Visit, folder: Path) -> dict[str, Any]:
    """What the page shows, by its own download."""
    with visit.page.expect_download() as download:
        visit.page.click("#save-json")
    path = folder / download.value.suggested_filename
    download.value.save_as(path)
    answer: dict[str, Any] = json.loads(path.read_text())
    return answer


def test_an_image_gives_boxes_rows_and_times(visit: Visit) -> None:
    visit.choose(photo("astronaut"))

    assert visit.boxes == visit.rows > 0
    assert "person" in visit.page.inner_text("#rows")
    times = visit.page.inner_text("#timing")
    assert all(name in times for name in ("Inference", "Server", "Round trip"))
    assert visit.requests.count("POST /detect") == 1
    assert "astronaut.jpg" in visit.page.inner_text("#status")


def test_the_sample_photo_is_there(visit: Visit) -> None:
    visit.page.click("#sample")
    visit.page.wait_for_selector("#overlay g[data-class]")

    assert visit.rows > 0


def test_sliders_act_without_a_request(visit: Visit) -> None:
    visit.choose(photo("motorcycle_left"))
    before = list(visit.requests)
    at_defaults = visit.boxes

    visit.slide("score", 0.05)
    low_score = visit.boxes
    visit.slide("iou", 1)
    no_suppression = visit.boxes
    visit.slide("iou", 0.5)
    visit.slide("score", 0.95)
    high_score = visit.boxes

    assert high_score <= at_defaults < low_score < no_suppression
    assert visit.boxes == visit.rows
    assert visit.requests == before


def ask(visit: Visit, name: str, **thresholds: float) -> list[dict[str, Any]]:
    """What the server itself says of a photo."""
    answer = httpx.post(
        f"{visit.origin}/detect",
        params=thresholds,
        content=jpeg(name),
        headers={"Content-Type": "image/jpeg"},
    )
    detections: list[dict[str, Any]] = answer.raise_for_status().json()["detections"]
    return detections


@pytest.mark.parametrize("name", PHOTOS)
def test_the_page_starts_with_the_servers_own_answer(
    visit: Visit, name: str, tmp_path: Path
) -> None:
    visit.choose(photo(name))

    assert shown(visit, tmp_path)["detections"] == ask(visit, name)


@pytest.mark.parametrize(("score", "iou"), [(0.1, 0.3), (0.2, 0.6)])
@pytest.mark.parametrize("name", PHOTOS)
def test_sliders_choose_as_the_server_does(
    visit: Visit, name: str, score: float, iou: float, tmp_path: Path
) -> None:
    visit.choose(photo(name))
    visit.slide("score", score)
    visit.slide("iou", iou)

    expected = ask(visit, name, score_threshold=score, iou_threshold=iou)
    assert shown(visit, tmp_path)["detections"] == expected


@pytest.mark.parametrize(("score", "iou"), [(0.05, 0.45), (0.05, 0), (0.12, 0.9)])
@pytest.mark.parametrize("name", PHOTOS)
def test_suppression_is_the_pipelines(
    visit: Visit, name: str, score: float, iou: float, tmp_path: Path
) -> None:
    # On the same boxes: at low scores many leave the image, and the server suppresses before
    # it clips them, so that its own answer may differ in an overlap close to the threshold.
    visit.choose(photo(name))
    visit.slide("score", score)
    visit.slide("iou", iou)

    candidates = ask(visit, name, score_threshold=0.05, iou_threshold=1, max_detections=300)
    candidates = [found for found in candidates if found["score"] >= score]
    boxes = np.array([found["box_xyxy"] for found in candidates], np.float32).reshape(-1, 4)
    classes = np.array([found["class_id"] for found in candidates])
    kept = non_maximum_suppression(boxes, classes, iou)[:100]
    assert shown(visit, tmp_path)["detections"] == [candidates[i] for i in kept]


def test_a_chip_switches_a_class_off_and_on(visit: Visit) -> None:
    visit.choose(photo("astronaut"))
    everything = visit.boxes
    chip = visit.page.locator("#chips button").first
    count = int(chip.locator(".count").inner_text())

    chip.click()
    assert visit.boxes == visit.rows == everything - count
    assert chip.get_attribute("aria-pressed") == "false"
    chip.click()
    assert visit.boxes == everything


def test_pointing_links_box_and_row(visit: Visit) -> None:
    visit.choose(photo("coffee"))
    visit.slide("score", 0.15)
    first_row = visit.page.locator("#rows tr").first

    first_row.hover()
    assert visit.page.locator("#overlay g[data-class].on").count() == 1
    color = first_row.locator(".swatch").evaluate("e => getComputedStyle(e).backgroundColor")
    drawn = visit.page.locator("#overlay g[data-class].on .box").evaluate(
        "e => getComputedStyle(e).stroke"
    )
    assert color == drawn

    visit.page.mouse.move(2, 2)
    assert visit.page.locator("#overlay g[data-class].on").count() == 0
    visit.page.locator("#overlay g[data-class]").last.locator(".box").hover()
    assert visit.page.locator("#rows tr.on").count() == 1


def test_several_images_each_have_a_state(visit: Visit) -> None:
    visit.choose(photo("astronaut"), photo("coffee"), ("notes.txt", "text/plain", b"hello"))

    states = visit.page.locator("#gallery button").evaluate_all("all => all.map(b => b.ariaLabel)")
    assert states == ["astronaut.jpg, done", "coffee.jpg, done", "notes.txt, failed"]
    visit.page.click("#gallery li:nth-child(2) button")
    assert visit.page.inner_text("#caption") == "coffee.jpg, 600 × 400"


GIVE = """([kind, encoded]) => {
  const bytes = Uint8Array.from(atob(encoded), (c) => c.charCodeAt(0));
  const data = new DataTransfer();
  data.items.add(new File([bytes], "given.jpg", { type: "image/jpeg" }));
  const event = kind === "paste"
    ? new ClipboardEvent("paste", { clipboardData: data, bubbles: true, cancelable: true })
    : new DragEvent(kind, { dataTransfer: data, bubbles: true, cancelable: true });
  document.querySelector("main").dispatchEvent(event);
}"""


@pytest.mark.parametrize("kind", ["drop", "paste"])
def test_images_can_be_dropped_and_pasted(visit: Visit, kind: str) -> None:
    if kind == "drop":
        visit.page.evaluate(GIVE, ["dragover", ""])
        assert visit.page.is_visible("#veil")
    visit.page.evaluate(GIVE, [kind, base64.b64encode(jpeg("astronaut")).decode()])
    visit.page.wait_for_selector("#overlay g[data-class]")

    assert not visit.page.is_visible("#veil")
    assert visit.page.inner_text("#caption").startswith("given.jpg")


def test_boxes_follow_the_orientation_in_exif(visit: Visit) -> None:
    stream = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side: show it turned right by 90 degrees
    with Image.open(io.BytesIO(jpeg("astronaut"))) as image:
        wide = image.resize((640, 480)).rotate(90, expand=True)
        wide.save(stream, "JPEG", exif=exif)

    visit.choose(("turned.jpg", "image/jpeg", stream.getvalue()))

    assert visit.page.inner_text("#caption") == "turned.jpg, 640 × 480"
    size = visit.page.locator("#photo").evaluate("e => [e.naturalWidth, e.naturalHeight]")
    assert size == [640, 480]
    assert "person" in visit.page.inner_text("#rows")


def test_the_json_says_what_is_shown(visit: Visit, tmp_path: Path) -> None:
    visit.choose(photo("astronaut"))
    visit.slide("score", 0.15)

    saved = shown(visit, tmp_path)

    assert len(saved["detections"]) == visit.rows
    assert saved["image"] == {"width": 512, "height": 512}
    assert saved["score_threshold"] == 0.15


def test_the_picture_is_saved_at_its_full_size(visit: Visit, tmp_path: Path) -> None:
    visit.choose(photo("motorcycle_left"))
    with visit.page.expect_download() as download:
        visit.page.click("#save-png")
    path = tmp_path / "saved.png"
    download.value.save_as(path)

    assert download.value.suggested_filename == "motorcycle_left.detections.png"
    with Image.open(path) as saved, Image.open(io.BytesIO(jpeg("motorcycle_left"))) as sent:
        assert saved.format == "PNG"
        assert saved.size == sent.size
        pixels = [np.asarray(image.convert("L"), np.int16) for image in (saved, sent)]
        difference = np.count_nonzero(np.abs(pixels[0] - pixels[1]) > 60)
    assert 500 < difference < 0.3 * saved.width * saved.height  # boxes, over the same photo
