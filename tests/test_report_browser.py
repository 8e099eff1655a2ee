"""Reports in a real browser: no error, in time, and what a person does with them.

They need Chromium and its driver (Debian: apt-get install chromium chromium-driver) and selenium.
"""

import io
import json
import runpy
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dlf_dynamics import cli
from dlf_dynamics.analysis.report.content import Panel, Part, Series, Table
from dlf_dynamics.analysis.report.page import Page, render

webdriver = pytest.importorskip("selenium.webdriver")
pytestmark = [pytest.mark.browser, pytest.mark.filterwarnings("ignore")]

MOST_SECONDS = 3.0
DOCS = Path(__file__).parents[1] / "docs"
STUDY = """
steps = 30
data.points_per_class = 4
model.widths = [3]
[grid]
schedule.amplitude = [10, 70]
schedule.period = [5, 10, 20]
model.seed = [0, 1]
"""


class Browser:
    """A headless Chromium with one page."""

    def __init__(self, folder):
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium") or ""
        for option in (
            "headless",
            "no-sandbox",
            "disable-gpu",
            "disable-quic",
            "no-first-run",
            "disable-background-networking",
            "disable-component-update",
            "disable-sync",
            "window-size=1400,1000",
            f"user-data-dir={folder}",
        ):
            options.add_argument(f"--{option}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        driver = shutil.which("chromedriver")
        self.driver = webdriver.Chrome(options, webdriver.ChromeService(driver))
        self.driver.set_script_timeout(30)

    def open(self, path):
        """Opens a page; seconds from its beginning until it can be used."""
        self.driver.get(path.as_uri())
        end = time.monotonic() + 30
        while (ready := self("document.documentElement.dataset.ready")) is None:
            assert time.monotonic() < end, self.complaints()
            time.sleep(0.02)
        return float(ready) / 1000

    def __call__(self, expression):
        """The value of an expression of JavaScript."""
        return self.driver.execute_script(f"return {expression};")

    def settle(self):
        """Waits until what was done is drawn."""
        self.driver.execute_async_script(
            "const done = arguments[0];"
            "requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 300)))"
        )

    def complaints(self):
        """Warnings and errors of the console since the last call."""
        return [e for e in self.driver.get_log("browser") if e["level"] in ("WARNING", "SEVERE")]

    def requests(self):
        """Addresses that were asked for since the last call."""
        events = [json.loads(e["message"])["message"] for e in self.driver.get_log("performance")]
        sent = [e for e in events if e["method"] == "Network.requestWillBeSent"]
        return [e["params"]["request"]["url"] for e in sent]

    def media(self, **features):
        told = [{"name": k.replace("_", "-"), "value": v} for k, v in features.items()]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": told})

    def resize(self, width, height, *, mobile=False):
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def colours(self):
        """Those of the pixels that are seen."""
        picture = Image.open(io.BytesIO(self.driver.get_screenshot_as_png())).convert("RGB")
        return set(picture.getdata())

    def span(self):
        """First and last step of the axis that all panels share."""
        steps = "Bokeh.documents[0].get_model_by_name('steps')"
        return self(f"[{steps}.start, {steps}.end]")

    def limits(self, panel=0):
        return self(f"(r => [r.start, r.end])(Bokeh.documents[0].roots()[{panel}].y_range)")

    def told(self):
        """What is shown under the pointer, as HTML."""
        return self.driver.execute_script(
            """
            const found = [];
            (function look(node) {
              for (const one of node.querySelectorAll("*")) {
                if (one.classList.contains("bk-Tooltip")) found.push(one.shadowRoot.innerHTML);
                if (one.shadowRoot) look(one.shadowRoot);
              }
            })(document);
            return found.join(" ");
            """
        )

    def points(self, panel=0):
        """Numbers of the points that are drawn in a panel."""
        return self(
            f"[...Bokeh.documents[0].roots()[{panel}].renderers"
            ".find((r) => r.glyph.type === 'Scatter').view.filter.indices]"
        )


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if not shutil.which("chromium") or not shutil.which("chromedriver"):
        pytest.skip("there is no chromium with chromedriver")
    found = Browser(tmp_path_factory.mktemp("profile"))
    yield found
    found.driver.quit()


@pytest.fixture(autouse=True)
def as_usual(browser):
    browser.resize(1400, 1000)
    browser.media(prefers_color_scheme="light")
    browser.complaints()


@pytest.fixture(scope="module")
def headline(tmp_path_factory):
    """The report of the headline run, its spectrum being of few checkpoints."""
    folder = tmp_path_factory.mktemp("headline")
    run = str(folder / "run.h5")
    assert cli.main(["train", "-o", run, "--checkpoint-every", "500", "--quiet"]) == 0
    assert cli.main(["spectrum", run, "--no-figures", "--density", "--quiet"]) == 0
    start = time.process_time()
    assert cli.main(["report", run]) == 0
    assert time.process_time() - start < 10
    page = folder / "run.report.html"
    assert page.stat().st_size <= 12e6
    return page


def test_the_headline_run_can_be_used_in_time_and_nothing_is_fetched(browser, headline):
    browser.requests()
    seconds = min(browser.open(headline) for _ in range(3))  # others use the machine, too
    assert seconds <= MOST_SECONDS
    assert browser.complaints() == []
    assert {url.split(":")[0] for url in browser.requests()} <= {"file", "data", "blob"}
    assert browser("document.querySelectorAll('.bk-Figure').length") >= 8


def test_a_row_moves_all_panels_and_every_step_is_drawn_there(browser, headline):
    browser.open(headline)
    first, last = browser.span()
    assert first <= 0
    assert last >= 70_000
    home, drawn = browser.limits(1), browser.points(1)
    assert len(drawn) < 70_001
    row = "document.querySelectorAll('tr[data-first]')[3]"
    start, end = (float(browser(f"{row}.dataset.{name}")) for name in ("first", "last"))
    browser.driver.execute_script(f"{row}.click()")
    browser.settle()
    assert browser.span() == [start, end]
    assert browser(f"{row}.getAttribute('aria-current')") == "true"
    spans = browser(
        "Bokeh.documents[0].roots().filter((f) => f.tags[0].steps)"
        ".map((f) => [f.x_range.start, f.x_range.end])"
    )
    assert len(spans) >= 6
    assert {tuple(span) for span in spans} == {(start, end)}
    assert browser.limits(1) != home
    # Near enough, each step is a pixel of its own, and drawn.
    browser.driver.execute_script(
        "Bokeh.documents[0].get_model_by_name('steps').setv({start: 9599.5, end: 9899.5})"
    )
    browser.settle()
    assert set(range(9600, 9900)) <= set(browser.points(1))
    browser.driver.execute_script("document.querySelector('[data-do=home]').click()")
    browser.settle()
    assert browser.span() == [first, last]
    assert browser.limits(1) == home
    assert browser.complaints() == []


def test_rows_are_used_by_the_keyboard(browser, headline):
    browser.open(headline)
    row = browser.driver.find_element("css selector", "tr[data-first]")
    browser.driver.execute_script("arguments[0].focus()", row)
    row.send_keys("\ue007")  # Enter
    browser.settle()
    assert browser.span() == [float(row.get_attribute(f"data-{n}")) for n in ("first", "last")]


def test_a_pointed_at_step_tells_all_digits(browser, headline):
    browser.open(headline)
    browser.driver.execute_script(
        "Bokeh.documents[0].get_model_by_name('steps').setv({start: 9590, end: 9610});"
        "document.getElementById('panels').scrollIntoView()"
    )
    browser.settle()
    figures = browser.driver.find_elements("css selector", "figure.panel")
    webdriver.ActionChains(browser.driver).move_to_element(figures[1]).perform()
    browser.settle()
    text = browser.told()
    loss = browser(
        "(({data_source: s, glyph}) => [...s.get_column('x')].map((x, i) => [x, i])"
        ".filter(([x]) => x > 9590 && x < 9610).map(([, i]) => s.get_column(glyph.y.field)[i]))"
        "(Bokeh.documents[0].roots()[1].renderers.find((r) => r.name === 'series-0')).map(String)"
    )
    assert len(loss) == 19
    assert any(value in text for value in loss)


def test_dark_pages_are_dark_and_the_button_changes_that(browser, headline):
    background = "getComputedStyle(document.body).backgroundColor"
    browser.media(prefers_color_scheme="dark")
    browser.open(headline)
    dark = browser(background)
    browser.driver.execute_script("document.getElementById('panels').scrollIntoView()")
    browser.settle()
    seen = browser.colours()
    assert (0x4A, 0x94, 0xF0) in seen
    assert (0x00, 0x72, 0xB2) not in seen  # dark on dark
    assert sum(map(int, dark[4:-1].split(","))) < 150
    style = "getComputedStyle(document.querySelector('.bk-Figure'))"
    assert browser(f"{style}.getPropertyValue('--bk-major-label-text-color')").strip() == "#e6e8ea"
    browser.driver.execute_script("document.getElementById('theme').click()")
    browser.settle()
    assert sum(map(int, browser(background)[4:-1].split(","))) > 700
    seen = browser.colours()
    assert (0x00, 0x72, 0xB2) in seen
    assert (0x4A, 0x94, 0xF0) not in seen
    assert browser.complaints() == []


@pytest.mark.parametrize("width", [390, 320])
def test_on_a_phone_nothing_leads_sideways(browser, headline, width):
    browser.resize(width, 844, mobile=True)
    browser.open(headline)
    browser.settle()
    assert browser("document.documentElement.scrollWidth") <= width
    widths = browser("[...document.querySelectorAll('.bk-Figure')].map((f) => f.offsetWidth)")
    assert all(200 < found <= width for found in widths)


def test_a_legend_hides_and_shows(browser, headline):
    browser.open(headline)
    key = "document.querySelector('.key')"
    shown = "Bokeh.documents[0].roots()[0].renderers.find((r) => r.name === 'series-0').visible"
    assert browser(shown) is True
    browser.driver.execute_script(f"{key}.click()")
    assert browser(shown) is False
    assert browser(f"{key}.getAttribute('aria-pressed')") == "false"
    browser.driver.execute_script(f"{key}.click()")
    assert browser(shown) is True


def test_scripts_in_names_do_not_run(browser, tmp_path):
    hostile = '<img src=x onerror="window.harmed=1"><script>window.harmed=1</script>'
    x = np.arange(50)
    beside = {hostile: [hostile] * 50}
    series = [Series(hostile, x, x * 1.0, "#0072B2", beside=beside) for _ in range(2)]
    panels = [
        Panel(hostile, series),
        Panel(hostile, series, x_label=hostile, ticks={10.0: hostile}, lines={hostile: 1.0}),
    ]
    tables = [Table(hostile, [hostile], [[hostile]], hostile, [(0.0, 1.0)])]
    part = Part(hostile, [hostile], tables, panels, facts={hostile: hostile})
    page = tmp_path / "page.html"
    page.write_text(render(Page(hostile, [part], subtitle=[hostile], last=49)), encoding="utf-8")
    browser.open(page)
    figure = browser.driver.find_element("css selector", "figure.panel")
    webdriver.ActionChains(browser.driver).move_to_element(figure).perform()
    browser.settle()
    assert "onerror" in browser.told()  # the pointer shows it, as text
    assert browser("window.harmed") is None
    assert browser("document.title") == hostile
    assert browser.complaints() == []


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    (folder / "study.toml").write_text(STUDY)
    assert cli.main(["sweep", str(folder / "study.toml"), "--quiet", "--processes", "1"]) == 0
    assert cli.main(["report", str(folder / "study.h5")]) == 0
    return folder / "study.report.html"


def test_a_cell_of_a_study_shows_its_runs(browser, study):
    assert browser.open(study) <= MOST_SECONDS
    assert browser.complaints() == []
    figure = browser.driver.find_element("css selector", "figure.panel .bk-Figure")
    webdriver.ActionChains(browser.driver).move_to_element(figure).click().perform()
    browser.settle()
    summaries = browser("[...document.querySelectorAll('#runs summary')].map((s) => s.textContent)")
    assert len(summaries) == 2  # seeds
    assert len({text.split("model.seed")[0].split(";")[1] for text in summaries}) == 1
    assert "schedule.period 10" in summaries[0]
    text = browser("document.querySelector('#runs dl').textContent")
    assert "optimizer.learning_rate" in text
    browser.driver.execute_script(
        "const box = document.getElementById('run'); box.value = 0;"
        "box.dispatchEvent(new Event('change'))"
    )
    assert browser("document.querySelectorAll('#runs details').length") == 1
    assert browser.complaints() == []


@pytest.fixture(scope="module")
def burst_page(tmp_path_factory):
    """The interactive page of the documentation, which is no report but made like one."""
    page = tmp_path_factory.mktemp("burst") / "burst.html"
    page.write_text(runpy.run_path(str(DOCS / "interactive.py"))["page"](), encoding="utf-8")
    assert page.stat().st_size < 1.5e6
    return page


@pytest.mark.parametrize("trained", [True, False])
def test_the_burst_in_the_browser_is_that_of_python(browser, burst_page, trained):
    model = runpy.run_path(str(DOCS / "burst.py"))["pulse"]
    browser.open(burst_page)

    def computed(outer, period):
        settings = {"rate": 1, "amplitude": 70, "period": period, "outer": outer, "pulses": 2}
        there = browser(f"pulse({json.dumps(settings | {'trained': trained})})")
        here = model(1.0, 70.0, period, outer, trained=trained, pulses=2)
        return {name: np.array(values) for name, values in there.items()}, here

    there, here = computed(2.5, 500)  # below the threshold nothing amplifies rounding
    assert np.max(here.sharpness) < 2
    np.testing.assert_allclose(there["phase"], here.phase, rtol=1e-12)
    np.testing.assert_allclose(there["first"], here.weights[:, 0], rtol=1e-12)
    np.testing.assert_allclose(there["second"], here.weights[:, 1], rtol=1e-12)
    np.testing.assert_allclose(there["output"], here.output, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(there["sharpness"], here.sharpness, rtol=1e-9)
    there, here = computed(7.5, 5000)
    before = here.phase < 0.84
    np.testing.assert_allclose(there["output"][before], here.output[before], rtol=1e-6)
    for found in (there["output"], here.output):
        size = np.abs(found[2:] - 2 * found[1:-1] + found[:-2]) / 4
        seen = here.phase[1:-1][(size > 0.02) & (here.phase[1:-1] < 1.5)]
        np.testing.assert_allclose(seen[0], 0.853, atol=2e-3)
        np.testing.assert_allclose(seen[-1], 1.0044 if trained else 1.191, atol=1e-3)
    sharpness = [np.max(there["sharpness"]), np.max(here.sharpness)]
    np.testing.assert_allclose(*sharpness, rtol=0.01)


def test_the_sliders_move_the_burst(browser, burst_page):
    browser.requests()
    browser.open(burst_page)
    told = "document.getElementById('told').textContent"
    assert "above 2/η at 0.818 pulses; f oscillates by more than 0.02 from 0.85" in browser(told)
    for name, value, words in (
        ("amplitude", "1", "above 2/η at 0.500 pulses"),
        ("outer", "2", "stays below 2/η; f does not oscillate"),
    ):
        browser.driver.execute_script(
            f"const one = document.getElementById('{name}'); one.value = '{value}';"
            "one.dispatchEvent(new Event('input'))"
        )
        assert words in browser(told)
    browser.settle()
    source = "Bokeh.documents[0].get_model_by_name('steps')"
    assert len(browser(f"[...{source}.data.output]")) == 15_000
    assert browser.complaints() == []
    assert {url.split(":")[0] for url in browser.requests()} <= {"file", "data", "blob"}


@pytest.mark.parametrize("width", [390, 320])
def test_the_burst_fits_on_a_phone(browser, burst_page, width):
    browser.resize(width, 844, mobile=True)
    browser.open(burst_page)
    browser.settle()
    assert browser("document.documentElement.scrollWidth") <= width
    browser.media(prefers_color_scheme="dark")
    browser.settle()
    assert browser("document.documentElement.dataset.theme") == "dark"
    assert browser.complaints() == []
