"""The page with a keyboard alone, in the dark, on a phone, and live."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import Visit, photo

PHONE = {
    "viewport": {"width": 360, "height": 740},
    "device_scale_factor": 3,
    "is_mobile": True,
    "has_touch": True,
}


def focused(visit: Visit) -> str:
    return str(visit.page.evaluate("document.activeElement.id || document.activeElement.tagName"))


def tab_to(visit: Visit, wanted: str) -> None:
    for _ in range(40):
        visit.page.keyboard.press("Tab")
        if focused(visit) == wanted:
            return
    pytest.fail(f"Tab does not come to {wanted}")


def test_a_keyboard_is_enough(visit: Visit) -> None:
    visit.page.keyboard.press("Tab")
    assert visit.page.evaluate("document.activeElement.className") == "skip"
    tab_to(visit, "files")
    outline = "getComputedStyle(document.querySelector('#files + label')).outlineStyle"
    assert visit.page.evaluate(outline) == "solid"
    tab_to(visit, "sample")
    visit.page.keyboard.press("Enter")
    visit.page.wait_for_selector("#rows tr")

    tab_to(visit, "score")
    visit.page.keyboard.press("Home")  # the lowest
    low = visit.rows
    assert low > 1
    tab_to(visit, "TR")
    assert visit.page.locator("#overlay g[data-class].on").count() == 1
    assert visit.page.locator("#rows tr").nth(0).evaluate("e => e.classList.contains('on')")
    visit.page.keyboard.press("ArrowDown")
    assert visit.page.locator("#rows tr").nth(1).evaluate("e => e.classList.contains('on')")
    tab_to(visit, "save-json")
    with visit.page.expect_download():
        visit.page.keyboard.press("Enter")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_follows_the_colour_scheme_and_reads_well(visit: Visit, scheme: Any) -> None:
    visit.page.emulate_media(color_scheme=scheme)
    visit.choose(photo("astronaut"))

    ratios = visit.page.evaluate(
        """() => {
          const light = (color) => {
            const [r, g, b] = color.match(/[0-9.]+/g).map(Number).map((v) => v / 255)
              .map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
          };
          const back = (e) => {
            const color = getComputedStyle(e).backgroundColor;
            return color === "rgba(0, 0, 0, 0)" ? back(e.parentElement) : color;
          };
          return ["h1", "#model", ".primary", "#caption", "td", "th", ".chip", ".count",
            "#timing dt", "#save-json"].map((selector) => {
            const e = document.querySelector(selector);
            const [a, b] = [light(getComputedStyle(e).color), light(back(e))].sort((x, y) => y - x);
            return [selector, (a + 0.05) / (b + 0.05)];
          });
        }"""
    )
    assert [pair for pair in ratios if pair[1] < 4.5] == []
    back = visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert back == {"light": "rgb(246, 247, 249)", "dark": "rgb(16, 18, 22)"}[scheme]


@pytest.mark.parametrize("options", [PHONE])
def test_a_phone_needs_no_sideways_scrolling(visit: Visit) -> None:
    width = "document.documentElement.scrollWidth"
    assert visit.page.evaluate(width) <= 360
    visit.choose(photo("motorcycle_left"), photo("astronaut"), photo("coffee"))
    visit.slide("score", 0.05)

    assert visit.page.evaluate(width) <= 360
    assert visit.boxes > 0
    small = visit.page.locator("button:visible, .actions label").evaluate_all(
        "all => all.filter(e => e.getBoundingClientRect().height < 36).map(e => e.id)"
    )
    assert small == []
    visit.page.locator("#overlay g[data-class]").last.locator(".box").tap(force=True)
    assert visit.page.locator("#rows tr.on").count() == 1


@pytest.mark.parametrize("options", [{}, PHONE])
def test_labels_stay_inside_the_picture(visit: Visit) -> None:
    for name in ("coffee", "motorcycle_left"):
        visit.choose(photo(name))
        visit.slide("score", 0.05)
        outside = visit.page.evaluate(
            """() => {
              const frame = document.querySelector("#frame").getBoundingClientRect();
              return [...document.querySelectorAll("#overlay .label:not(.crowded)")]
                .filter(label => {
                const { left, top, right, bottom } = label.getBoundingClientRect();
                return left < frame.left - 1 || top < frame.top - 1 ||
                  right > frame.right + 1 || bottom > frame.bottom + 1;
              }).length;
            }"""
        )
        assert outside == 0


COUNT_FRAMES = """const Real = WebSocket;
window.sockets = [];
window.WebSocket = class extends Real {
  constructor(url) {
    super(url);
    Object.assign(this, { unanswered: 0, most: 0 });
    sockets.push(this);
    this.addEventListener("message", () => { this.unanswered -= 1; });
  }
  send(data) {
    if (typeof data !== "string") this.most = Math.max(this.most, this.unanswered += 1);
    super.send(data);
  }
};"""


def go_live(visit: Visit) -> None:
    visit.page.add_init_script(COUNT_FRAMES)
    visit.page.reload()
    visit.page.click("#camera")
    visit.page.click("#start-live")
    visit.wait_for_rate()


def test_labels_do_not_smear_in_a_crowd(visit: Visit) -> None:
    visit.choose(photo("motorcycle_left"))
    visit.slide("score", 0.05)
    visit.slide("iou", 0.8)
    assert visit.page.locator("#overlay .crowded").count() > 0

    overlaps = visit.page.evaluate(
        """() => {
          const all = [...document.querySelectorAll("#overlay .label:not(.crowded)")]
            .map((label) => label.getBoundingClientRect());
          return all.filter((a, i) => all.slice(i + 1).some((b) =>
            a.left < b.right - 1 && b.left < a.right - 1 &&
            a.top < b.bottom - 1 && b.top < a.bottom - 1)).length;
        }"""
    )
    assert overlaps == 0


def test_live_detection_shows_its_rate_and_holds_back(visit: Visit) -> None:
    go_live(visit)
    visit.slide("score", 0.05)
    expect(visit.page.locator("#timing")).to_contain_text("Round trip")
    visit.page.wait_for_timeout(1000)

    assert 1 <= visit.page.evaluate("sockets[0].most") <= 2
    assert not visit.page.is_visible("#problem")
    visit.page.click("#stop")
    assert visit.page.is_visible("#empty")
    assert visit.page.evaluate("document.querySelector('video').srcObject") is None


def test_a_photo_from_the_camera(visit: Visit) -> None:
    visit.page.click("#camera")
    visit.page.click("#snapshot")
    visit.page.wait_for_selector("#gallery [data-state=done]", state="attached")

    assert visit.page.inner_text("#caption").startswith("photo ")
    assert not visit.page.is_visible("#live")


def test_live_detection_rests_while_the_tab_is_hidden(visit: Visit) -> None:
    go_live(visit)
    hide = """hidden => {
      Object.defineProperty(document, "hidden", { configurable: true, value: hidden });
      document.dispatchEvent(new Event("visibilitychange"));
    }"""
    visit.page.evaluate(hide, True)
    visit.page.wait_for_timeout(500)  # for the answers under way
    expect(visit.page.locator("#rate")).to_have_text("Paused while the tab is hidden.")
    assert visit.page.evaluate("sockets[0].unanswered") == 0
    visit.page.evaluate(hide, False)
    visit.wait_for_rate()


def test_live_detection_connects_again(visit: Visit) -> None:
    go_live(visit)
    visit.page.evaluate("sockets[0].close()")
    expect(visit.page.locator("#status")).to_contain_text("Connection lost")
    visit.wait_for_rate()

    assert visit.page.evaluate("sockets.length") == 2
    visit.page.click("#stop")
