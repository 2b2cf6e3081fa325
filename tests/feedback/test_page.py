"""The page in a real browser, by mouse and keys."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from tests.feedback.conftest import HOSTILE, Served, write_pairs
from tuner.feedback.store import SIDES, Store

BROWSER, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))
FLAGS = (
    *("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking"),
    *("disable-component-update", "disable-sync", "disable-dev-shm-usage", "window-size=1200,900"),
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (BROWSER and DRIVER), reason="no chromium and chromedriver here: apt-get install chromium-driver"
    ),
]


class Page:
    """A browser with the page open."""

    def __init__(self, driver: webdriver.Chrome, url: str, name: str):
        self.driver = driver
        driver.get(url)
        self.wait(lambda: self.all("#name input, #name textarea"))
        self.wait(lambda: self.one("#name input, #name textarea").get_attribute("value") is not None)
        box = self.one("#name input, #name textarea")
        box.clear()
        box.send_keys(name, Keys.ENTER)
        self.wait(lambda: self.all(".progress"))

    def all(self, selector: str) -> list[Any]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector: str) -> Any:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def wait(self, until: Any) -> None:
        WebDriverWait(self.driver, 20, 0.05).until(lambda _: until())

    def keys(self, *keys: str) -> None:
        """Keys to whatever has the focus."""
        webdriver.ActionChains(self.driver).send_keys(*keys).perform()

    def held(self, key: str) -> None:
        webdriver.ActionChains(self.driver).key_down(Keys.CONTROL).send_keys(key).key_up(Keys.CONTROL).perform()

    def progress(self) -> int:
        return int(self.one(".progress span:last-child").text.split(" of ")[0])

    def chosen(self) -> int | None:
        checked = [box.is_selected() for box in self.all("#choice input")]
        return checked.index(True) + 1 if any(checked) else None

    def submitted(self, done: int) -> None:
        self.wait(lambda: self.progress() == done and self.chosen() is None)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    for flag in (*FLAGS, f"user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
    yield driver
    driver.quit()


def answers(served: Served, name: str) -> list[Any]:
    return [answer for answer in Store(served.addresses.with_name("f.sqlite")).answers() if answer.annotator == name]


def test_by_keys(served, driver):
    page = Page(driver, served.url, "by keys")
    for number, key in enumerate("1234"):
        page.keys(key)
        page.wait(lambda key=key: page.chosen() == int(key))
        page.keys(Keys.ENTER)
        page.submitted(number + 1)
    found = answers(served, "by keys")
    assert [answer.choice for answer in found[2:]] == ["tie", "both_bad"]
    assert [answer.choice for answer in found[:2]] == [SIDES[found[0].swapped], SIDES[not found[1].swapped]]
    page.keys(Keys.ENTER)
    page.wait(lambda: page.all(".said"))
    assert page.one(".said").text.startswith("Choose first") and page.progress() == 4
    page.keys("s")
    page.submitted(5)
    page.keys("u")
    page.wait(lambda: page.progress() == 4)
    page.keys("u")
    page.wait(lambda: page.progress() == 3 and page.chosen() == 4)
    page.keys("2", Keys.ENTER)
    page.submitted(4)
    assert [answer.choice for answer in answers(served, "by keys")][3] == SIDES[not found[3].swapped]


def test_by_mouse(served, driver):
    page = Page(driver, served.url, "by mouse")
    assert not page.all("#edit textarea") or not page.one("#edit textarea").is_displayed()
    page.one("#b").click()
    page.wait(lambda: page.chosen() == 2 and page.one("#edit textarea").is_displayed())
    page.all("#choice label")[2].click()
    page.wait(lambda: page.chosen() == 3 and not page.one("#edit textarea").is_displayed())
    page.one("#submit").click()
    page.submitted(1)
    page.one("#undo").click()
    page.wait(lambda: page.progress() == 0 and page.chosen() == 3)
    page.keys("1", Keys.ENTER)
    page.submitted(1)
    assert len(answers(served, "by mouse")) == 1, "Enter is not for the button that was clicked"
    page.one("#skip").click()
    page.submitted(2)
    assert [answer.choice for answer in answers(served, "by mouse")][1:] == ["skip"]


def test_edits(served, driver):
    page = Page(driver, served.url, "editor")
    page.keys("1")
    page.wait(lambda: page.one("#edit textarea").get_attribute("value").startswith(("one <img", "two <img")))
    page.keys("e")
    page.wait(lambda: driver.switch_to.active_element == page.one("#edit textarea"))
    page.keys(" 234us", Keys.ENTER, "more")
    assert page.chosen() == 1 and page.progress() == 0, "keys write"
    page.held(Keys.ENTER)
    page.submitted(1)
    page.keys("1", Keys.ENTER)
    page.submitted(2)
    edited, plain = answers(served, "editor")
    better = edited.second if edited.choice == "second" else edited.first
    assert edited.edited == f"{better} 234us\nmore" and plain.edited is None
    page.keys("u")
    page.wait(lambda: page.progress() == 1)
    page.keys("u")
    page.wait(lambda: page.progress() == 0 and page.one("#edit textarea").get_attribute("value") == edited.edited)


def test_texts_are_text_and_nothing_is_fetched_elsewhere(served, driver):
    driver.get_log("performance")
    page = Page(driver, served.url, "<b>x</b>")
    assert page.one(".progress span").text == "<b>x</b>"
    shown = [box.get_property("textContent") for box in page.all(".text")]
    assert shown[0] == HOSTILE and sorted(shown[1:]) == [f"one {HOSTILE}", f"two {HOSTILE}"]
    assert not page.all(".text *") and driver.title == "Which is better?"
    page.one("button.label-wrap").click()
    page.wait(lambda: page.all("strong"))  # the guidelines are Markdown
    page.keys("3", Keys.ENTER)
    page.submitted(1)
    sent = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    urls = {each["params"]["request"]["url"] for each in sent if each["method"] == "Network.requestWillBeSent"}
    assert urls and {url for url in urls if not url.startswith((served.url, "data:", "blob:", "chrome"))} == set()


def test_to_the_end_and_a_server_that_was_killed(tmp_path, driver):
    pairs, file = write_pairs(tmp_path / "pairs.jsonl", 2), tmp_path / "f.sqlite"
    server = Served(tmp_path, "--prompts", pairs, "--output", file)
    page = Page(driver, server.url, "ada")
    page.keys("1", Keys.ENTER)
    page.submitted(1)
    server.end()
    page.keys("2", Keys.ENTER)
    server = Served(tmp_path, "--output", file)
    page = Page(driver, server.url, "ada")
    assert page.progress() == 1 and len(Store(file).answers()) == 1
    page.keys("2", Keys.ENTER)
    page.wait(lambda: "Nothing is left" in page.one("#prompt").text)
    assert not page.one("#submit").is_displayed() and page.one("#undo").is_displayed()
    page.keys("u")
    page.wait(lambda: page.chosen() == 2)
    assert server.end(signal.SIGINT) == 0
