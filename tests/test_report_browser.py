"""The report in a browser: it opens without a word of complaint, loads nothing, and does what is clicked."""

import json
import shutil
from pathlib import Path
from urllib.parse import unquote

import pytest
from tables import FAILURE
from test_report import DENSE, ENVIRONMENT, HOSTILE, seeds, stored

from mtlprune_bench.commands import run_cli

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")

pytestmark = [
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="Chromium and its driver are not installed"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # of selenium's own connections
]

ACCURACY = {"metric": "within", "task": "normals"}
WIDE = {"width": 1400, "height": 900, "deviceScaleFactor": 1, "mobile": False}
PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Return a report of several methods and sparsities, a stand-in, a failure, and hostile names."""
    folder = tmp_path_factory.mktemp("report")
    changes = [
        *seeds("dense", (0.5, 0.6, 0.4), **DENSE),
        *seeds("snip", (0.4, 0.5, 0.1)),
        *seeds("lth", (0.6, 0.7, 0.3)),
        *seeds("snip", (0.2, 0.3, 0.1), name="sparse", sparsity=0.9),
        *seeds("evil", (0.45,), settings=HOSTILE, name="evil"),
        FAILURE | {"run": "broken-0", "method": "gmp", "status": "failed", "reason": HOSTILE},
        *seeds("snip", (0.3,), name="fake", stand_in=True),
    ]
    changes += [change | ACCURACY for change in changes if change.get("task") != "" and "value" in change]
    stored(folder / "runs", *changes, environment=[ENVIRONMENT])
    path = folder / "report.html"
    assert run_cli(["report", "--store", str(folder / "runs"), "--output", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def chromium():
    """Return a headless Chromium that logs what it says and what it asks for."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=DRIVER))
    yield driver
    driver.quit()


class Page:
    """A report that is open, and what a reader would do with it."""

    def __init__(self, driver, path, screen=WIDE):
        self.driver = driver
        self.command("Emulation.setDeviceMetricsOverride", screen)
        for kind in ("browser", "performance"):
            driver.get_log(kind)
        driver.get(path.as_uri())

    def command(self, name, arguments):
        self.driver.execute_cdp_cmd(name, arguments)

    def js(self, code, *arguments):
        return self.driver.execute_script(f"return {code}", *arguments)

    def texts(self, selector):
        return self.js("[...document.querySelectorAll(arguments[0])].map((found) => found.textContent)", selector)

    def click(self, selector, text=None):
        """Click the first element of `selector`, the first with this text if one is given."""
        found = self.js(
            "[...document.querySelectorAll(arguments[0])].find((e) => [null, e.innerText].includes(arguments[1]))",
            selector,
            text,
        )
        assert found is not None, (selector, text)
        self.js("arguments[0].dispatchEvent(new MouseEvent('click', {bubbles: true}))", found)

    def methods(self):
        return self.texts("#results tbody tr:not(.group) th button")

    def column(self, heading):
        """Return the means below a heading, as texts."""
        place = self.texts("#results thead tr + tr th").index(heading)
        rows = f"#results tbody tr:not(.group) > :nth-child({place + 1})"
        return [text.split(" ± ")[0] for text in self.texts(rows)]

    def complaints(self):
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def asked_for(self):
        """Return all addresses that were asked for since the page was opened."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        names = ("Network.requestWillBeSent", "Network.webSocketCreated")
        found = [event["params"] for event in events if event["method"] in names]
        return {event.get("url") or event["request"]["url"] for event in found}


@pytest.fixture
def opened(chromium, report):
    page = Page(chromium, report)
    page.click("#controls button", "all")  # sparsities
    yield page
    assert page.complaints() == []


def test_it_loads_nothing_and_complains_of_nothing_whatever_is_clicked(chromium, report):
    page = Page(chromium, report)
    assert page.js("document.documentElement.dataset.ready") == "yes"
    for selector in (
        "#results thead button",
        "#controls button",
        "summary",
        "#theme",
        "td[data-column]",
        "#origin a",
    ):
        for number in range(min(12, page.js("document.querySelectorAll(arguments[0]).length", selector))):
            if selector == "#origin a":
                continue  # it leads to the run's folder
            page.js(
                "document.querySelectorAll(arguments[0])[arguments[1]]"
                "?.dispatchEvent(new MouseEvent('click', {bubbles: true}))",
                selector,
                number,
            )
    page.js(
        "document.querySelectorAll('select').forEach((s) => [...s.options].forEach((o) => {"
        "s.value = o.value; s.dispatchEvent(new Event('change')); }))"
    )
    assert page.complaints() == []
    assert page.asked_for() == {report.as_uri()}


def test_the_policy_holds_in_the_browser(chromium, report):
    """What the policy is for: a script that was smuggled in would run nothing and load nothing."""
    page = Page(chromium, report)
    page.js(
        "document.body.append(Object.assign(document.createElement('img'), {src: 'http://localhost:9/x.png'}))"
    )
    page.js(
        "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.bad = 1'}))"
    )
    assert page.js("window.bad") is None
    complaints = page.complaints()
    assert len(complaints) == 2
    assert all("Content Security Policy" in text for text in complaints)


def test_a_click_on_a_heading_sorts_the_best_first_and_says_so(opened):
    before = opened.methods()
    heading = next(text for text in opened.texts("#results thead button") if text.startswith("miou"))
    opened.click("#results thead button", heading)
    numbers = [float(text) for text in opened.column(heading)]
    assert numbers == sorted(numbers, reverse=True)
    assert len(set(numbers)) > 3
    sorted_head = "#results th[aria-sort=descending]"
    assert opened.texts(sorted_head) == [heading]
    assert opened.js("document.activeElement.textContent") == heading, "the keyboard stays where it was"
    opened.click("#results thead button", heading)
    assert [float(text) for text in opened.column(heading)] == numbers[::-1]
    opened.click("#results thead button", heading)
    assert opened.methods() == before


def test_a_method_is_toggled_in_the_table_and_in_the_charts(opened):
    points = opened.js("document.querySelectorAll('#charts .point').length")
    assert "lth" in opened.methods()
    opened.click("#controls label[title=lth] input")
    assert "lth" not in opened.methods()
    assert "lth" not in opened.texts("#paired tbody th")
    assert opened.js("document.querySelectorAll('#charts .point').length") < points
    opened.click("#controls label[title=lth] input")
    assert "lth" in opened.methods()
    assert opened.js("document.querySelectorAll('#charts .point').length") == points


def test_text_and_sparsity_filter(opened):
    opened.click("#controls button", "90 %")
    assert opened.column("asked %") == ["0", "90"], "dense networks stay"
    assert opened.texts("#count")[0].startswith("2 of 5 lines")
    opened.click("#controls button", "all")
    opened.js(
        "Object.assign(document.getElementById('find'), {value: 'snip 90'}).dispatchEvent(new Event('input'))"
    )
    assert opened.methods() == ["snip"]
    assert opened.column("asked %") == ["90"]


def test_columns_are_toggled_by_block(opened):
    assert "normals" in opened.texts("#results .blocks th")
    opened.click("#controls .chip", "normals")
    assert "normals" not in opened.texts("#results .blocks th")
    assert "seg" in opened.texts("#results .blocks th")


def test_a_number_shows_its_seeds_under_the_pointer_and_its_runs_after_a_click(opened):
    rows = opened.methods()
    cell = f"#results tbody td[data-line='{rows.index('lth')}'][data-column='0']"
    opened.js(
        "document.querySelector(arguments[0]).dispatchEvent(new Event('pointerover', {bubbles: true}))", cell
    )
    tip = opened.texts("#tip")[0]
    assert all(text in tip for text in ("seed 0 60.00", "seed 1 70.00", "seed 2 30.00", "53.33 ± 20.82"))
    opened.click(cell)
    assert opened.js("document.getElementById('origin').open")
    text = opened.texts("#origin")[0]
    known = ("lth-0", "lth-2", "c0ffee", "torch 2.6", "mtlbench run --set 'data.root=a b'", "2030-01-02", "0.7")
    assert all(part in text for part in known)
    assert opened.js("document.querySelector('#origin a').getAttribute('href')") == "./runs/lth-0/"
    folder = unquote(opened.js("document.querySelector('#origin a').href").removeprefix("file://"))
    assert Path(folder, "rows.parquet").exists()


def test_arrows_and_enter_reach_every_number(opened):
    first = opened.js("document.querySelectorAll('#results td[tabindex=\"0\"]').length")
    assert first == 1, "the table is one stop of the tab key"
    opened.js("document.querySelector('#results td[tabindex=\"0\"]').focus()")
    key = "document.activeElement.dispatchEvent(new KeyboardEvent('keydown', {key: arguments[0], bubbles: true}))"
    opened.js(key, "ArrowDown")
    opened.js(key, "ArrowRight")
    assert opened.js("[document.activeElement.dataset.line, document.activeElement.dataset.column]") == ["1", "1"]
    opened.js(key, "Enter")
    assert opened.js("document.getElementById('origin').open")


def test_hostile_names_are_text(opened):
    assert any(HOSTILE in text for text in opened.texts("#results tbody th"))
    assert opened.texts("#failures td:last-child") == [HOSTILE]
    assert opened.js("document.querySelectorAll('img').length") == 0


def test_a_stand_in_is_loud_and_settings_are_never_mixed(opened):
    assert opened.texts(".loud") == []
    opened.js(
        "(() => { const s = document.querySelector('.settings select'); s.value = '1';"
        "s.dispatchEvent(new Event('change')); })()"
    )
    assert opened.texts(".loud")[0].startswith("Stand-in data.")
    assert opened.methods() == ["snip"]


def test_light_and_dark_by_the_system_and_by_the_switch(opened):
    colour = "getComputedStyle(document.body).backgroundColor"
    media = "Emulation.setEmulatedMedia"
    opened.command(media, {"features": [{"name": "prefers-color-scheme", "value": "light"}]})
    assert opened.js(colour) == "rgb(255, 255, 255)"
    opened.command(media, {"features": [{"name": "prefers-color-scheme", "value": "dark"}]})
    dark = opened.js(colour)
    assert dark == "rgb(20, 23, 27)"
    opened.click("#theme")
    assert opened.js(colour) == "rgb(255, 255, 255)"
    opened.command(media, {"features": [{"name": "prefers-color-scheme", "value": "light"}]})
    opened.click("#theme")
    assert opened.js(colour) == dark
    opened.command(media, {"features": []})


def test_a_phone_scrolls_tables_and_not_the_page(chromium, report):
    page = Page(chromium, report, PHONE)
    assert page.js("document.documentElement.scrollWidth") <= PHONE["width"]
    inner = "document.querySelector('#results .scroll')"
    assert page.js(f"{inner}.scrollWidth > {inner}.clientWidth")
    page.js(f"{inner}.scrollTo(200, 0)")
    assert page.js(f"{inner}.scrollLeft") > 100
    name = "document.querySelector('#results tbody tr:not(.group) th').getBoundingClientRect()"
    assert page.js(f"{name}.left") == pytest.approx(page.js(f"{inner}.getBoundingClientRect().left"), abs=2)
    assert page.complaints() == []
