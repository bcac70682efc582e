"""The page at /, in a real Chromium."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serving import CLOCK, Server

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
selenium = pytest.importorskip("selenium", reason="needs selenium")
MISSING = "chromium and chromedriver (Debian: apt install chromium-driver)"
# set: they cannot be had
REFUSED = os.environ.get("PYFASTV_NO_BROWSER")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason=f"this machine has no {MISSING}" if REFUSED else f"needs {MISSING}"
)

from selenium import webdriver  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in [*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}", "--window-size=1000,900"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def page(browser: Any, server: Server) -> Any:
    browser.get(server.url)
    browser.get_log("browser")
    WebDriverWait(browser, 20).until(lambda b: b.find_element(By.ID, "model").text)
    return browser


def choose(page: Any, *pictures: Path) -> None:
    before = len(page.find_elements(By.CSS_SELECTOR, "#chosen canvas"))
    page.find_element(By.ID, "file").send_keys("\n".join(map(str, pictures)))
    WebDriverWait(page, 10).until(
        lambda b: len(b.find_elements(By.CSS_SELECTOR, "#chosen canvas")) == before + len(pictures)
    )


def ask(page: Any, text: str) -> str:
    turns = len(page.find_elements(By.CLASS_NAME, "report"))
    page.find_element(By.ID, "question").send_keys(text, Keys.ENTER)
    WebDriverWait(page, 60).until(lambda b: len(b.find_elements(By.CLASS_NAME, "report")) > turns)
    return str(page.find_elements(By.CSS_SELECTOR, ".answer > p:first-child")[-1].text)


def brightness(page: Any) -> float:
    """Mean over the first picture as drawn, 0 to 255."""
    value: float = page.execute_script(
        "const c = document.querySelector('#log canvas'); const d = c.getContext('2d')"
        ".getImageData(0, 0, c.width, c.height).data; let s = 0;"
        "for (let i = 0; i < d.length; i += 4) s += d[i] + d[i + 1] + d[i + 2]; return s / (d.length / 4) / 3;"
    )
    return value


def test_a_picture_is_asked_about_and_its_kept_patches_are_drawn(page: Any) -> None:
    choose(page, CLOCK.picture)
    assert ask(page, CLOCK.question) == CLOCK.answer
    caption = page.find_element(By.CSS_SELECTOR, "#log figcaption").text
    kept = int(re.fullmatch(r"(\d+) of 576 patches", caption)[1])
    assert 0 < kept < 576
    pruned = brightness(page)
    stages = page.find_elements(By.CSS_SELECTOR, "fieldset input")
    assert len(stages) == 2
    stages[0].click()
    whole = brightness(page)
    assert page.find_element(By.CSS_SELECTOR, "#log figcaption").text == "all 576 patches"
    # what is dropped is 78% darker
    assert pruned < whole * (1 - 0.5 * (1 - kept / 576))
    stages[1].click()
    assert brightness(page) == pruned

    names = [cell.text for cell in page.find_elements(By.CSS_SELECTOR, ".times .name")]
    assert {"choosing", "prompt in all", "without pruning (estimate)", "generation"} <= set(names)


def test_what_a_reducer_left_is_drawn_at_its_places(page: Any) -> None:
    page.find_element(By.ID, "settings").click()
    for name, value in (("fastv", "off"), ("reduce", "pool,window=2")):
        page.find_element(By.ID, name).send_keys(value)
    choose(page, CLOCK.picture)
    assert ask(page, CLOCK.question)
    assert page.find_element(By.CSS_SELECTOR, "#log figcaption").text == "144 of 576 patches"
    assert "144 visual tokens for 576 patches" in page.find_element(By.CSS_SELECTOR, ".report .note").text
    page.find_element(By.ID, "settings").click()
    page.find_element(By.ID, "fastv").send_keys(Keys.CONTROL, "a", Keys.BACKSPACE)
    page.find_element(By.ID, "turbo").send_keys("share=0.5")
    page.find_element(By.ID, "reduce").send_keys(Keys.CONTROL, "a", Keys.BACKSPACE)
    page.find_element(By.ID, "clear").click()
    choose(page, CLOCK.picture)
    ask(page, CLOCK.question)
    assert page.find_element(By.CSS_SELECTOR, "#log figcaption").text == "144 of 576 patches"
    page.find_elements(By.CSS_SELECTOR, "fieldset input")[0].click()
    assert page.find_element(By.CSS_SELECTOR, "#log figcaption").text == "288 of 576 patches"


def test_a_second_question_knows_the_first_picture(page: Any) -> None:
    choose(page, CLOCK.picture)
    ask(page, CLOCK.question)
    assert "nalog" in ask(page, "Is the clock digital or analog?")
    page.find_element(By.ID, "clear").click()
    assert not page.find_elements(By.CLASS_NAME, "turn")


def test_a_picture_is_dropped_and_pasted(page: Any) -> None:
    for event, field in (("drop", "dataTransfer"), ("paste", "clipboardData")):
        page.execute_script(
            "const [kind, field, data] = arguments; const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0));"
            "const transfer = new DataTransfer(); transfer.items.add(new File([bytes], 'a.png', {type: 'image/png'}));"
            "const event = new Event(kind, {bubbles: true, cancelable: true}); event[field] = transfer;"
            "document.body.dispatchEvent(event);",
            *(event, field, base64.b64encode(CLOCK.picture.read_bytes()).decode()),
        )
    WebDriverWait(page, 10).until(lambda b: len(b.find_elements(By.CSS_SELECTOR, "#chosen canvas")) == 2)
    page.find_element(By.CSS_SELECTOR, "#chosen button").click()
    assert len(page.find_elements(By.CSS_SELECTOR, "#chosen canvas")) == 1


def test_errors_are_shown_and_the_question_stays(page: Any, tmp_path: Path) -> None:
    page.find_element(By.ID, "settings").click()
    page.find_element(By.ID, "fastv").send_keys("k=banana")
    page.find_element(By.ID, "question").send_keys("Hello", Keys.ENTER)
    problem = page.find_element(By.ID, "problem")
    WebDriverWait(page, 10).until(lambda _: problem.is_displayed())
    assert "banana" in problem.text
    assert page.find_element(By.ID, "question").get_attribute("value") == "Hello"

    text = tmp_path / "text.txt"
    text.write_text("no picture")
    page.find_element(By.ID, "file").send_keys(str(text))
    WebDriverWait(page, 10).until(lambda _: "Not a picture" in problem.text)


def test_an_answer_is_stopped_with_escape(page: Any, server: Server) -> None:
    # every token is as likely as any other, so that the answer does not end by itself
    page.execute_script(
        "const plain = window.fetch; const odd = {temperature: 50, top_k: 0, top_p: 1, min_p: 0};"
        "window.fetch = (url, o) => plain(url, {...o, body: JSON.stringify({...JSON.parse(o.body), ...odd})});"
    )
    page.find_element(By.ID, "question").send_keys("Tell a story.", Keys.ENTER)
    answer = WebDriverWait(page, 20).until(lambda b: b.find_element(By.CSS_SELECTOR, ".answer p").text)
    assert answer
    page.find_element(By.TAG_NAME, "body").send_keys(Keys.ESCAPE)
    WebDriverWait(page, 10).until(lambda b: "Stopped." in b.find_element(By.CLASS_NAME, "answer").text)
    WebDriverWait(page, 10).until(lambda _: json.loads(server.request("GET", "/health")[2])["active"] == 0)


def test_how_far_a_question_is_read_is_shown_until_the_answer_begins(page: Any) -> None:
    # a server that takes its time, and sends comments meanwhile
    page.execute_script(
        "const say = (sink, text) => sink.enqueue(new TextEncoder().encode(text));"
        "const chunk = (more) => 'data: ' + JSON.stringify({choices: [{delta: {}}], ...more}) + '\\n\\n';"
        "const body = new ReadableStream({start(sink) {"
        "  say(sink, ': ping\\n\\n' + chunk({}) + chunk({prompt_progress: {processed: 150, total: 600}}) + ': ping');"
        "  window.go_on = () => { say(sink, '\\n\\n' + chunk({choices: [{delta: {content: 'It is.'}}]})); };"
        "}});"
        "const plain = window.fetch;"
        "window.fetch = (url, o) => { window.fetch = plain; window.asked = JSON.parse(o.body);"
        "  return Promise.resolve(new Response(body)); };"
    )
    page.find_element(By.ID, "question").send_keys("Well?", Keys.ENTER)
    bar = WebDriverWait(page, 10).until(lambda b: b.find_element(By.CSS_SELECTOR, ".reading progress"))
    assert (bar.get_attribute("value"), bar.get_attribute("max")) == ("150", "600")
    assert page.find_element(By.CLASS_NAME, "reading").text == "150 of 600 tokens read"
    assert page.execute_script("return window.asked.return_progress") is True
    page.execute_script("window.go_on()")
    WebDriverWait(page, 10).until(lambda b: "It is." in b.find_element(By.CLASS_NAME, "answer").text)
    assert not page.find_elements(By.CLASS_NAME, "reading")


def test_the_page_can_be_used_by_keyboard_alone(page: Any) -> None:
    page.find_element(By.TAG_NAME, "body").click()
    reached = []
    for _ in range(6):
        page.switch_to.active_element.send_keys(Keys.TAB)
        reached.append(page.switch_to.active_element.get_attribute("id"))
    assert {"clear", "choose", "question", "ask"} <= set(reached)


def test_every_control_has_a_name(page: Any) -> None:
    for element in page.find_elements(By.CSS_SELECTOR, "button, input, textarea"):
        if element.is_displayed():
            assert element.accessible_name


@pytest.mark.parametrize("width", [320, 390])
def test_a_phone_needs_no_sideways_scrolling(page: Any, width: int) -> None:
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 780, "deviceScaleFactor": 2, "mobile": True},
    )
    try:
        choose(page, CLOCK.picture)
        ask(page, CLOCK.question)
        assert page.execute_script("return document.documentElement.scrollWidth") <= width
        assert page.execute_script("return document.querySelector('main').scrollWidth") <= width
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_dark_mode_is_followed(page: Any) -> None:
    def background() -> str:
        return str(page.execute_script("return getComputedStyle(document.body).backgroundColor"))

    light = background()
    page.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    )
    try:
        assert background() != light
    finally:
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_nothing_is_asked_of_other_servers(page: Any, server: Server) -> None:
    asked = page.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    assert asked
    assert all(name.startswith(server.url) for name in asked)
    policy = server.request("GET", "/")[1]["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    violations = [entry["message"] for entry in page.get_log("browser") if "Security" in entry["message"]]
    assert not violations
