"""The report in a real browser, from disk. Skipped only where there is no Chromium."""

import pytest

from flatsat.reports.pages import render_run

WAIT_S = 60
pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def page(report, tmp_path_factory):
    out = tmp_path_factory.mktemp("report") / "report.html"
    render_run(report, out)
    return out.as_uri()


def _until(browser, what):
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, WAIT_S, poll_frequency=0.05).until(what)


@pytest.fixture
def opened(browser, open_page, page):
    open_page(page)
    yield browser
    assert browser.get_log("browser") == []


def _column(browser, table, name):
    """Return the sort values of a column, top to bottom; None where there is none."""
    return browser.execute_script(
        """
        const table = document.getElementById(arguments[0]);
        const heads = [...table.tHead.rows[0].cells];
        const column = heads.findIndex((h) => h.textContent.trim() === arguments[1]);
        return [...table.tBodies[0].rows].filter((r) => !r.hidden).map((r) => {
          const v = r.cells[column].dataset.v;
          return v === undefined ? r.cells[column].textContent.trim() : v === "" ? null : Number(v);
        });
        """,
        table,
        name,
    )


def _head(browser, table, name):
    from selenium.webdriver.common.by import By

    heads = browser.find_elements(By.CSS_SELECTOR, f"#{table} thead th")
    return next(h for h in heads if h.text.split("\n")[0].strip(" ↑↓↕") == name)


def test_the_page_asks_for_nothing_but_itself(opened, page):
    asked = opened.execute_script(
        "return performance.getEntriesByType('resource').map((e) => e.name)"
    )
    assert [name for name in asked if not name.startswith(("data:", "blob:"))] == []


def test_the_table_sorts_by_latency_both_ways_by_keyboard(opened, report):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    by_speed = [m.p50_ns.value for m in report.sections[0].measurements]
    head = _head(opened, "table0", "Median (p50)")
    assert head.get_attribute("aria-sort") == "ascending"
    button = head.find_element(By.TAG_NAME, "button")
    button.send_keys(Keys.ENTER)
    assert head.get_attribute("aria-sort") == "descending"
    assert _column(opened, "table0", "Median (p50)") == by_speed[::-1]
    button.send_keys(Keys.SPACE)
    assert head.get_attribute("aria-sort") == "ascending"
    assert _column(opened, "table0", "Median (p50)") == by_speed


def test_what_has_no_value_stays_at_the_end_in_either_order(opened):
    from selenium.webdriver.common.by import By

    for _ in range(2):
        head = _head(opened, "table0", "Speed-up")
        opened.execute_script("arguments[0].scrollIntoView({inline: 'center'})", head)
        head.find_element(By.TAG_NAME, "button").click()
        values = _column(opened, "table0", "Speed-up")
        held = [v for v in values if v is not None]
        assert values[len(held) :] == [None] * (len(values) - len(held)) != []
        assert held in (sorted(held), sorted(held, reverse=True))


def test_the_table_filters_by_words_and_by_family(opened):
    from selenium.webdriver.common.by import By

    search = opened.find_element(By.CSS_SELECTOR, "[data-tools=table0] input[type=search]")
    search.send_keys("filters INT8")
    assert len(_column(opened, "table0", "Candidate")) == 1
    shown = opened.find_element(By.CSS_SELECTOR, "[data-tools=table0] .shown")
    assert shown.text == "1 of 10 shown"
    search.clear()
    search.send_keys("narrow")
    assert len(_column(opened, "table0", "Candidate")) == 2
    opened.find_element(By.CSS_SELECTOR, "[data-tools=table0] input[value=equal-macs]").click()
    assert _column(opened, "table0", "Candidate") == []


def _hover(browser, plot, label):
    """Move the mouse to the point of a label and return the tooltip's text."""
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By

    figure = browser.find_element(By.CSS_SELECTOR, f"[data-figure={plot}]")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", figure)
    point = browser.execute_script(
        """
        const [plot, label] = arguments;
        for (const [t, trace] of plot.data.entries()) {
          const i = (trace.customdata ?? []).findIndex((c) => c.startsWith(`<b>${label}</b>`));
          if (i < 0) continue;
          return plot.querySelectorAll(`.scatterlayer .trace`)[t].querySelectorAll(".point")[i];
        }
        """,
        figure,
        label,
    )
    ActionChains(browser).move_to_element(point).perform()
    tip = _until(
        browser, lambda b: b.find_elements(By.CSS_SELECTOR, f"[data-figure={plot}] .hovertext")
    )
    return tip[0].text


def test_hovering_over_a_point_tells_its_figures(opened):
    said = _hover(opened, "pareto0", "filters-50 int8")
    assert "filters-50 int8" in said
    assert "median 31.8" in said
    assert "accuracy 96.5" in said
    assert "n=1,000" in said


def test_a_hostile_name_is_hovered_over_as_text(opened):
    said = _hover(opened, "pareto0", "&lt;script&gt;alert(1)&lt;/script&gt;")
    assert "<script>alert(1)</script>" in said


@pytest.mark.parametrize(
    ("value", "title"),
    [("size", "model file"), ("macs", "multiply-accumulates"), ("memory", "ru_maxrss")],
)
def test_the_trade_off_switches_its_axis(opened, value, title):
    from selenium.webdriver.common.by import By

    radio = opened.find_element(By.CSS_SELECTOR, f"input[data-plot=pareto0][value={value}]")
    opened.execute_script("arguments[0].scrollIntoView({block: 'center'})", radio)
    radio.click()
    axis = "return document.querySelector('[data-figure=pareto0] .xtitle').textContent"
    assert _until(opened, lambda b: title in b.execute_script(axis))


def _background(browser):
    return browser.execute_script("return getComputedStyle(document.body).backgroundColor")


def test_the_theme_toggles_is_kept_and_recolours_the_figures(opened, page):
    from selenium.webdriver.common.by import By

    colour = "return document.querySelector('[data-figure=pareto0] .xtitle').style.fill"
    light, before = _background(opened), opened.execute_script(colour)
    button = opened.find_element(By.ID, "theme")
    assert button.get_attribute("aria-pressed") == "false"
    button.click()
    assert button.get_attribute("aria-pressed") == "true"
    assert _background(opened) != light
    _until(opened, lambda b: b.execute_script(colour) != before)
    opened.get(page)
    kept = opened.execute_script("return document.documentElement.dataset.theme")
    opened.execute_script("localStorage.clear()")
    assert kept == "dark"


def test_the_page_starts_in_the_colours_of_the_system(browser, open_page, page):
    open_page(page, scheme="dark")
    assert browser.execute_script("return document.documentElement.dataset.theme") == "dark"
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("width", [1280, 768, 390, 320])
def test_the_page_never_scrolls_sideways(browser, open_page, page, width):
    open_page(page, width=width, height=844)
    for _ in range(2):
        wide, inner = browser.execute_script(
            "return [document.scrollingElement.scrollWidth, innerWidth]"
        )
        assert inner == width
        assert wide <= inner
        browser.execute_script(
            "for (const d of document.querySelectorAll('details')) d.open = true"
        )
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_stand_out_from_what_is_behind_them(open_page, contrast, page, scheme):
    open_page(page, scheme=scheme)
    for selector in (".under, .tile small, .rule, .where", ".chip, .badge", "td small, .none"):
        assert contrast(selector) >= 4.5, selector


def test_printing_unfolds_what_is_folded_and_turns_the_page_light(browser, open_page, page):
    open_page(page, scheme="dark")
    browser.execute_script("dispatchEvent(new Event('beforeprint'))")
    folded = "return document.querySelectorAll('details:not([open]):not(td details)').length"
    width = "return document.querySelector('[data-figure=pareto0] .main-svg').clientWidth"
    wide = browser.execute_script(width)
    theme = "return document.documentElement.dataset.theme"
    assert browser.execute_script(folded) == 0
    assert browser.execute_script(theme) == "light"
    assert browser.execute_script(width) == 640
    browser.execute_script("dispatchEvent(new Event('afterprint'))")
    _until(browser, lambda b: b.execute_script(width) == wide)
    assert browser.execute_script(folded) > 0
    assert browser.execute_script(theme) == "dark"
    assert browser.get_log("browser") == []
