"""What the page says when something is wrong."""

from __future__ import annotations

import io
import json

import pytest
from PIL import Image
from playwright.sync_api import Route, WebSocketRoute, expect

from photos import jpeg
from tests.browser.conftest import Visit, photo


def words(visit: Visit) -> str:
    return visit.page.inner_text("#problem")


def test_a_text_file_is_refused_without_a_request(visit: Visit) -> None:
    visit.choose(("notes.txt", "text/plain", b"hello"))

    assert "This is not an image" in words(visit)
    assert visit.requests.count("POST /detect") == 0
    assert not visit.page.is_visible("#viewer")
    assert not visit.page.is_visible("#retry")


def test_a_text_file_that_claims_to_be_a_jpeg(visit: Visit) -> None:
    visit.expected = "Failed to load resource"  # the browser's own note of the 400
    visit.choose(("fake.jpg", "image/jpeg", b"hello, I am no JPEG"))

    assert "not an image" in words(visit)
    assert not visit.page.is_visible("#panel")


@pytest.mark.parametrize(
    ("status", "said"),
    [(413, "too large"), (429, "Try again in 7 seconds"), (503, "The server is busy")],
)
def test_refusals_are_said_in_words(visit: Visit, status: int, said: str) -> None:
    visit.expected = "Failed to load resource"
    problem = {"type": "about:blank", "title": "No", "status": status, "detail": "Not now."}

    def refuse(route: Route) -> None:
        headers = {"Retry-After": "7", "Content-Type": "application/problem+json"}
        route.fulfill(status=status, headers=headers, body=json.dumps(problem))

    visit.page.route("**/detect?*", refuse)
    visit.choose(photo("coffee"))

    assert said in words(visit)
    assert visit.page.is_visible("#retry") == (status != 413)


def test_trying_again_after_the_server_was_gone(visit: Visit) -> None:
    visit.expected = "Failed to load resource"
    visit.page.route("**/detect?*", lambda route: route.abort("connectionrefused"))
    visit.choose(photo("astronaut"))
    assert "cannot be reached" in words(visit)

    visit.page.unroute("**/detect?*")
    visit.page.click("#retry")
    visit.page.wait_for_selector("#overlay g[data-class]")

    assert not visit.page.is_visible("#problem")


def test_a_key_is_asked_for_and_kept(visit: Visit) -> None:
    visit.expected = "Failed to load resource"

    def locked(route: Route) -> None:
        if route.request.headers.get("x-api-key") == "secret":
            route.continue_()
        else:
            body = json.dumps({"title": "Unauthorized", "status": 401, "detail": "Send a key."})
            route.fulfill(status=401, body=body, content_type="application/problem+json")

    visit.page.route("**/detect?*", locked)
    assert not visit.page.is_visible("#key-form")
    visit.choose(photo("astronaut"))
    visit.page.fill("#key", "secret")
    visit.page.keyboard.press("Enter")
    visit.page.wait_for_selector("#overlay g[data-class]")

    assert not visit.page.is_visible("#key-form")
    assert visit.page.evaluate("Object.values(sessionStorage)") == ["secret"]


def test_the_server_reads_what_browsers_cannot_show(visit: Visit) -> None:
    stream = io.BytesIO()
    with Image.open(io.BytesIO(jpeg("astronaut"))) as image:
        image.save(stream, "TIFF")
    visit.choose(("scan.tiff", "image/tiff", stream.getvalue()))

    assert visit.boxes > 0


def test_live_mode_asks_for_a_key_too(visit: Visit) -> None:
    def refuse(socket: WebSocketRoute) -> None:
        socket.on_message(lambda _: socket.close(code=1008, reason="send a key"))

    visit.page.route_web_socket("**/live", refuse)
    visit.page.click("#camera")
    visit.page.click("#start-live")
    expect(visit.page.locator("#key-form")).to_be_visible()

    assert "asks for an API key" in words(visit)
    assert visit.page.is_visible("#start-live")


def test_live_mode_says_that_the_server_is_busy(visit: Visit) -> None:
    def answer(socket: WebSocketRoute) -> None:
        def receive(message: str | bytes) -> None:
            if isinstance(message, bytes):
                error = {
                    "title": "Service Unavailable",
                    "status": 503,
                    "detail": "The queue is full.",
                }
                socket.send(json.dumps({"frame": 0, "error": error}))

        socket.on_message(receive)

    visit.page.route_web_socket("**/live", answer)
    visit.page.click("#camera")
    visit.page.click("#start-live")
    expect(visit.page.locator("#problem")).to_contain_text("The server is busy")

    assert "The queue is full" in words(visit)
    assert visit.page.is_visible("#stop")
