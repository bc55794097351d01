"""A real browser for tests of pages."""

import shutil

import pytest

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
WAIT_S = 60


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """A browser; tests that ask for it are skipped only where there is no Chromium."""
    if CHROMIUM is None or DRIVER is None:
        pytest.skip(
            "no chromium and chromedriver on PATH: apt-get install chromium chromium-driver"
        )
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in FLAGS:
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    driver.set_page_load_timeout(WAIT_S)
    yield driver
    driver.quit()


@pytest.fixture(scope="session")
def until(browser):
    """A function that waits until a script's value is true."""
    from selenium.webdriver.support.ui import WebDriverWait

    wait = WebDriverWait(browser, WAIT_S, poll_frequency=0.05)
    return lambda script: wait.until(lambda b: b.execute_script(f"return {script}"))


@pytest.fixture(scope="session")
def open_page(browser, until):
    """A function that opens a page and returns when all its figures are drawn."""

    def show(page, width=1280, height=800, scheme="light"):
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
        )
        features = [
            {"name": "prefers-color-scheme", "value": scheme},
            # Without smooth scrolling a click finds its target where it was a moment ago.
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        browser.get(page)
        until("document.documentElement.dataset.drawn")

    return show


@pytest.fixture(scope="session")
def contrast(browser):
    """A function from a selector to the least contrast of its texts with what is behind them."""

    def least(selector):
        return browser.execute_script(_CONTRAST, selector)

    return least


_CONTRAST = """
const parts = (c) => c.match(/[\\d.]+/g).map(Number);
const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
  .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((s, v, i) => s + v * [0.2126, 0.7152, 0.0722][i], 0);
const behind = (e) => {
  for (; e; e = e.parentElement) {
    const c = parts(getComputedStyle(e).backgroundColor);
    if (c.length === 3 || c[3] === 1) return c;
  }
  return [255, 255, 255];
};
return Math.min(...[...document.querySelectorAll(arguments[0])].map((e) => {
  const [a, b] = [light(parts(getComputedStyle(e).color)), light(behind(e))];
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
}));
"""
