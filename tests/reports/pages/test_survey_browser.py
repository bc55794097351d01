"""Pictures of methods in a real browser. Skipped only where there is no Chromium."""

import pytest

from flatsat.reports.figures_sensitivity import render_sensitivity
from flatsat.reports.pages import render_run

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def page(surveyed, tmp_path_factory):
    out = tmp_path_factory.mktemp("survey") / "report.html"
    render_run(surveyed, out)
    return out.as_uri()


@pytest.mark.parametrize("width", [1280, 390])
def test_pictures_of_methods_fit_the_page_and_are_drawn(browser, open_page, page, width):
    open_page(page, width=width, height=844)
    wide = browser.execute_script("return document.scrollingElement.scrollWidth")
    assert wide <= width
    undrawn = "return document.querySelectorAll('.plot .wait').length"
    folded = "return document.querySelectorAll('details:not([open]) .plot').length"
    assert browser.execute_script(undrawn) == browser.execute_script(folded)
    drawn = browser.execute_script(
        "return [...document.querySelectorAll('.hist svg path.now')].map((p) => p.getBBox().width)"
    )
    assert len(drawn) == 4
    assert min(drawn) > 0
    images = browser.execute_script(
        "return [...document.querySelectorAll('.bits img, img.mask')].map((i) => i.naturalWidth)"
    )
    assert 0 not in images
    assert {28, 784} <= set(images)
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_beside_the_pictures_stand_out(open_page, contrast, page, scheme):
    open_page(page, scheme=scheme)
    for selector in (".hist .axes span, .hist .axes b", ".hist .note", "#methods0 small"):
        assert contrast(selector) >= 4.5, selector


def test_the_table_of_methods_sorts(browser, open_page, page):
    open_page(page)
    sizes = browser.execute_script(
        """
        const table = document.getElementById("methods0");
        const heads = [...table.tHead.rows[0].cells];
        const column = heads.findIndex((h) => h.textContent.trim() === "Coded");
        heads[column].querySelector("button").click();
        return [...table.tBodies[0].rows].map((r) => Number(r.cells[column].dataset.v));
        """
    )
    assert sizes == sorted(sizes)
    assert len(set(sizes)) > 3


def test_a_sensitivity_scan_opens_in_either_theme(browser, open_page, contrast, scan, tmp_path):
    out = tmp_path / "sensitivity.html"
    render_sensitivity(scan, out)
    for scheme in ("light", "dark"):
        open_page(out.as_uri(), scheme=scheme)
        assert contrast("td, th, .under") >= 4.5
    open_page(out.as_uri(), width=390, height=844)
    assert browser.execute_script("return document.scrollingElement.scrollWidth") <= 390
    lines = "return document.querySelectorAll('.scatterlayer .trace').length"
    assert browser.execute_script(lines) == len(scan.curves) + 1
    assert browser.get_log("browser") == []
