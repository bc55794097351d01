"""A page of several boards and clocks in a real browser."""

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def page(html, tmp_path_factory):
    out = tmp_path_factory.mktemp("report") / "report.html"
    out.write_text(html, encoding="utf-8")
    return out.as_uri()


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_never_scrolls_sideways_and_draws_every_figure(
    browser, open_page, until, page, width
):
    open_page(page, width=width, height=844)
    browser.execute_script("for (const d of document.querySelectorAll('details')) d.open = true")
    wide, inner = browser.execute_script(
        "return [document.scrollingElement.scrollWidth, innerWidth]"
    )
    assert wide <= inner == width
    # What was folded is drawn when it is unfolded, in its full width.
    plots = "[...document.querySelectorAll('.plot')]"
    until(f"{plots}.every((p) => p.querySelector('.main-svg')?.clientWidth === p.clientWidth)")
    assert browser.get_log("browser") == []


def test_columns_of_counts_sort(browser, open_page, page):
    open_page(page)
    values = browser.execute_script(
        """
        const table = document.getElementById("table1");
        const heads = [...table.tHead.rows[0].cells];
        const column = heads.findIndex((h) => h.textContent.trim() === "Energy");
        heads[column].querySelector("button").click();
        return [...table.tBodies[0].rows].map((r) => r.cells[column].dataset.v);
        """
    )
    held = [float(v) for v in values if v]
    assert held == sorted(held)
    assert values[len(held) :] == [""] * 4


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_stand_out_from_what_is_behind_them(open_page, contrast, page, scheme):
    open_page(page, scheme=scheme)
    for selector in (".clockline, .clockhead .under", ".badge", ".verdict, .said span", ".note"):
        assert contrast(selector) >= 4.5, selector


def test_the_marks_of_two_boards_differ_in_colour_and_shape(browser, open_page, page):
    open_page(page)
    marks = browser.execute_script(
        "return [...document.querySelectorAll('.keys .mark')].map((m) => {"
        "const s = getComputedStyle(m); return [s.backgroundColor, s.borderRadius]})"
    )
    assert len({colour for colour, _ in marks}) == len({shape for _, shape in marks}) == 2


def test_a_folded_figure_follows_the_theme_when_it_is_unfolded(browser, open_page, until, page):
    open_page(page)
    browser.execute_script("document.getElementById('theme').click()")
    figure = "document.querySelector('[data-figure=latency1]')"
    assert browser.execute_script(f"return {figure}.querySelector('.main-svg')") is None
    browser.execute_script(f"{figure}.closest('details').open = true")
    ink = "getComputedStyle(document.documentElement).getPropertyValue('--ink-2').trim()"
    until(f"{figure}.querySelector('.xtitle')")
    drawn = browser.execute_script(f"return [{figure}._fullLayout.font.color, {ink}]")
    browser.execute_script("localStorage.clear()")
    assert drawn[0] == drawn[1]
