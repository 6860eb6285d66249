"""The page in a browser: what is shown, clicked and said."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ui_pages import CLASSES, photo_bytes

from partialnet.ui import PageServer
from partialnet.ui import answers as ui_answers

pytest.importorskip("pytorch_grad_cam")

BROWSER, DRIVER = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver")
    if not BROWSER or not DRIVER:
        pytest.skip("there is no Chromium with its driver")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in (
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1300,900",
        f"--user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):  # fmt: skip
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def wait(browser: Any, condition: Any, seconds: float = 60) -> Any:
    """What the condition gives once it holds; an element that the page replaces while it is asked does not yet."""
    from selenium.common.exceptions import StaleElementReferenceException

    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(StaleElementReferenceException):
            if value := condition():
                return value
        assert time.monotonic() < end, browser.find_element("tag name", "body").text
        time.sleep(0.05)


def find(browser: Any, selector: str) -> list[Any]:
    return browser.find_elements("css selector", selector)


@pytest.fixture
def page(browser: Any, page_server: PageServer) -> Any:
    browser.get(page_server.url)
    wait(browser, lambda: find(browser, "body[data-ready]"))
    return browser


def upload(page: Any, path: Path, content: bytes) -> None:
    path.write_bytes(content)
    find(page, "#file")[0].send_keys(str(path))


def pictures(page: Any, selector: str) -> list[str]:
    return page.execute_script("return [...document.querySelectorAll(arguments[0])].map(i => i.src)", selector)


def test_photo_in_the_browser(page: Any, tmp_path: Path) -> None:
    assert [element.text for element in find(page, "h2")][:2] == ["tiny", "peer"]
    upload(page, tmp_path / "rose.png", photo_bytes())
    wait(page, lambda: find(page, "#attention-0 .blocks img"))
    assert find(page, "#photo")[0].get_attribute("alt") == "rose.png, 120×80 pixels"
    for index in (0, 1):
        names = [element.text for element in find(page, f"#classes-{index} .name")]
        assert sorted(names) == sorted(CLASSES)  # also the one that looks like HTML
        (shown,) = find(page, f"#map-{index} figure img")
        assert shown.get_property("naturalWidth") == 120
        assert "stage 4" in find(page, f"#map-{index} figcaption")[0].text
    assert len(find(page, "#spatial-0 .stage")) == 4
    assert len(find(page, "#channel-0 svg")) == 4
    assert "no gates" in find(page, "#attention-1")[0].text
    assert not find(page, "#spatial-1 img, #channel-1 svg, img:not([alt])")
    # nothing failed to load, no style or script was refused
    assert page.get_log("browser") == []


def test_stage_class_and_place_in_the_browser(page: Any, tmp_path: Path) -> None:
    from selenium.webdriver import ActionChains

    upload(page, tmp_path / "a.png", photo_bytes())
    wait(page, lambda: find(page, "#attention-0 .blocks img"))
    find(page, "#stages input[value='3']")[0].click()
    wait(page, lambda: "stage 3" in find(page, "#map-1 figcaption")[0].text)
    last = find(page, "#classes-0 li:last-child button")[0]
    last.click()
    wait(page, lambda: find(page, "#classes-0 li:last-child button[aria-pressed=true]"))
    name = last.find_element("css selector", ".name").text
    assert all(name in element.text for element in find(page, ".map figcaption"))
    # the photograph: click, then the arrow keys
    before = pictures(page, "#attention-0 .blocks > figure > img")
    place = find(page, "#place")[0]
    across, down = -int(0.2 * place.size["width"]), -int(0.4 * place.size["height"])
    ActionChains(page).move_to_element_with_offset(place, across, down).click().perform()
    clicked = wait(page, lambda: (now := pictures(page, "#attention-0 .blocks > figure > img")) != before and now)
    place.send_keys("\ue015" * 12)  # the arrow down
    wait(page, lambda: pictures(page, "#attention-0 .blocks > figure > img") not in (before, clicked))
    assert find(page, "#error:not([hidden])") == []


def test_several_files_dropped_in_the_browser(page: Any) -> None:
    """One would be shown, and the others passed over without a word."""
    page.execute_script("""
        const transfer = new DataTransfer();
        for (const name of ["a.png", "b.png"]) transfer.items.add(new File(["x"], name));
        document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true }));
    """)
    (error,) = wait(page, lambda: find(page, "#error:not([hidden])"))
    assert error.text == "These are 2 files; the page looks at one photograph at a time."


def test_stage_chosen_while_a_photo_is_on_its_way(page: Any, tmp_path: Path) -> None:
    """The maps end as those of the new photograph at the new stage, whichever answer comes last."""
    upload(page, tmp_path / "a.png", photo_bytes())
    wait(page, lambda: find(page, "#attention-0 .blocks img"))
    page.execute_script(
        """
        const transfer = new DataTransfer();
        transfer.items.add(new File([new Uint8Array(arguments[0])], "b.png"));
        document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true }));
        document.querySelector("#stages input[value='2']").click();
        """,
        list(photo_bytes(1, (90, 60))),
    )
    wait(page, lambda: find(page, "#photo")[0].get_attribute("alt").startswith("b.png"))
    wait(page, lambda: "stage 2" in find(page, "#map-1 figcaption")[0].text, 10)
    assert [find(page, f"#map-{index} figure img")[0].get_property("naturalWidth") for index in (0, 1)] == [90, 90]


@pytest.mark.parametrize(("size", "least"), [((8, 8), 320), ((3, 1200), 0)])
def test_photographs_of_unusual_sizes(page: Any, tmp_path: Path, size: tuple[int, int], least: int) -> None:
    """Small ones are large enough for a click in them, and narrow ones do not fill many screens."""
    upload(page, tmp_path / "a.png", photo_bytes(0, size))
    wait(page, lambda: find(page, "#attention-0 h3"))
    shown = find(page, "#place")[0].size
    assert shown["width"] >= least
    assert page.execute_script("return document.documentElement.scrollHeight") < 3000


def test_pictures_of_the_page_are_no_new_photographs(page: Any, tmp_path: Path) -> None:
    """The hand slips in a click on the photograph; a map that is dragged, as to a folder, is let go over the page."""
    from selenium.webdriver import ActionChains

    upload(page, tmp_path / "a.png", photo_bytes())
    wait(page, lambda: find(page, "#attention-0 .blocks img"))
    page.execute_script("window.sent = []; addEventListener('drop', (event) => sent.push(event.target.id), true)")
    marker = find(page, "#marker")[0]
    start = ActionChains(page).move_to_element_with_offset(find(page, "#place")[0], -30, -20).click_and_hold()
    start.move_by_offset(4, 4).move_by_offset(4, 4).release().perform()
    wait(page, lambda: "50%" not in marker.get_attribute("style"), 5)
    shown = find(page, "#map-0 figure img")[0]
    ActionChains(page).click_and_hold(shown).move_by_offset(30, 0).move_by_offset(30, 0).release().perform()
    assert page.execute_script("return sent") == []
    assert find(page, "#photo")[0].get_attribute("alt") == "a.png, 120×80 pixels"


def test_what_the_browser_cannot_read(page: Any, tmp_path: Path) -> None:
    """A folder that is dropped, or a file that has been deleted meanwhile: the server is not to blame."""
    page.execute_script("""
        const input = document.createElement("input");
        Object.assign(input, { type: "file", id: "other" });
        document.body.append(input);
    """)
    gone = tmp_path / "a.png"
    gone.write_bytes(photo_bytes())
    find(page, "#other")[0].send_keys(str(gone))
    gone.unlink()
    page.execute_script("""
        const transfer = new DataTransfer();
        transfer.items.add(document.getElementById("other").files[0]);
        document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true }));
    """)
    (error,) = wait(page, lambda: find(page, "#error:not([hidden])"))
    assert error.text == "'a.png' cannot be read; it may be a folder, or no longer what it was."


def test_bad_file_in_the_browser(page: Any, tmp_path: Path) -> None:
    upload(page, tmp_path / "a.png", photo_bytes())
    wait(page, lambda: find(page, "#map-0 figure img"))
    upload(page, tmp_path / "notes.jpg", b"no picture")
    (error,) = wait(page, lambda: find(page, "#error:not([hidden])"))
    assert error.text == "'notes.jpg' is not a JPEG, PNG, WEBP, AVIF, GIF, TIFF, BMP, PPM or HEIF image."
    assert error.get_attribute("role") == "alert"
    # what was shown stays, and the next good one takes its place
    assert find(page, "#map-0 figure img")
    upload(page, tmp_path / "b.png", photo_bytes(1))
    wait(page, lambda: find(page, "#photo")[0].get_attribute("alt").startswith("b.png"))
    assert not find(page, "#error:not([hidden])")


def test_speed_in_the_browser(page: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = ui_answers.measure_folding
    measured = []
    monkeypatch.setattr(
        ui_answers, "measure_folding", lambda *args: measured.append(args) or measure(*args, seconds=0.1)
    )
    find(page, "#measure")[0].send_keys("\ue007" * 2)  # enter, twice
    wait(page, lambda: len(find(page, "#timings tbody tr")) == 4)
    assert "quartiles" in find(page, "#timings")[0].text
    assert len(measured) == 1
    assert page.switch_to.active_element.get_attribute("id") == "measure"  # the keyboard goes on from there


def test_narrow_and_dark(page: Any, tmp_path: Path) -> None:
    """On a phone nothing sticks out, and the colours follow the system's."""
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 360, "height": 700, "deviceScaleFactor": 1, "mobile": True}
    )
    upload(page, tmp_path / "a.png", photo_bytes())
    wait(page, lambda: find(page, "#attention-0 .blocks img"))
    assert page.execute_script("return document.documentElement.scrollWidth") == 360
    colors = []
    for scheme in ("light", "dark"):
        page.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        )
        colors.append(page.execute_script("return getComputedStyle(document.body).backgroundColor"))
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert colors[0] != colors[1]


def test_many_networks_keep_their_width(page: Any) -> None:
    """Those that do not fit beside the others go below them."""
    widths = page.execute_script("""
        const cards = document.querySelector("#networks");
        for (let more = 0; more < 6; more++) cards.append(cards.firstElementChild.cloneNode(true));
        return [...cards.children].map((card) => card.getBoundingClientRect().width);
    """)
    assert len(widths) == 8
    assert min(widths) >= 17 * 16
    assert page.execute_script("return document.documentElement.scrollWidth <= innerWidth")


def test_print(page: Any, tmp_path: Path) -> None:
    """On paper: light colours, and nothing to press."""
    upload(page, tmp_path / "a.png", photo_bytes())
    wait(page, lambda: find(page, "#attention-0 .blocks img"))
    dark = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", **dark})
    colour = page.execute_script("return getComputedStyle(document.body).color")
    hidden = [not find(page, selector)[0].is_displayed() for selector in ("#file", "#measure", "#map-0 img")]
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
    assert colour == "rgb(27, 31, 36)"
    assert hidden == [True, True, False]
