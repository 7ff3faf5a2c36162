"""The page in a real browser: it loads without errors, filters, hovers, switches colours and themes."""

import re
import shutil

import pytest
from report_setup import HOSTILE, make_run

from equipoise.diagnostics.report import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER), reason="no chromium and chromedriver: apt-get install chromium chromium-driver"
    ),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    runs = [make_run(folder / f"plain-{seed}", seed=seed) for seed in (0, 1)]
    runs.append(make_run(folder / "bare", records=False, evaluations=False, clipping="balanced"))
    write_report(runs, folder / "report.html")
    return folder / "report.html"


@pytest.fixture
def browser(page):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1200,900",
    ):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    driver.set_script_timeout(60)
    driver.get(page.as_uri())
    yield driver
    errors = [entry for entry in driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
    driver.quit()
    assert not errors


def js(driver, code, *arguments):
    return driver.execute_script(code, *arguments)


def listed(driver):
    return js(driver, "return [...document.querySelectorAll('#rollout-list li')].map((li) => li.dataset.key)")


def choose(driver, name, value):
    code = (
        "const s = document.getElementById(arguments[0]); s.value = arguments[1]; s.dispatchEvent(new Event('change'))"
    )
    js(driver, code, name, value)


def keys(driver, text):
    from selenium.webdriver import ActionChains

    ActionChains(driver).send_keys(text).perform()


def test_it_loads_alone_without_network_and_draws_every_chart(browser, page):
    requests = [entry["message"] for entry in browser.get_log("performance") if "requestWillBeSent" in entry["message"]]
    assert all(page.as_uri() in message or '"url":"data:' in message for message in requests)
    assert "plain (2 seeds) · bare" in browser.title
    drawn = """
        const done = arguments[0], places = [...document.querySelectorAll(".plot")];
        places.forEach((place) => place.scrollIntoView());
        let i = 0;
        (function step() {
          if (i < places.length) { places[i++].scrollIntoView(); return setTimeout(step, 120); }
          const isGap = (p) => /logged|No /.test(p.textContent);
          done(places.map((p) => [p.id, !!p.querySelector(".main-svg"), isGap(p)]));
        })();
    """
    charts = browser.execute_async_script(drawn)
    assert len(charts) == 17
    for name, is_drawn, is_gap in charts:
        assert is_drawn != is_gap, name
    gaps = {name for name, is_drawn, _ in charts if not is_drawn}
    assert gaps == {"chart-share", "chart-clipped", "chart-phase"}
    assert "bare: no evaluations on held-out data; no token records" in js(
        browser, "return document.getElementById('notes').textContent"
    )


def test_text_of_tokens_is_text(browser):
    assert js(browser, "return document.querySelectorAll('img, #main b, #main i.x').length") == 0
    assert HOSTILE in js(browser, "return document.querySelector('#top-tables').textContent")
    assert "question" in js(browser, "return document.querySelector('.prompt').textContent")
    assert "<i>" in js(browser, "return document.querySelector('.prompt').textContent")


def test_filters_search_and_order(browser):
    everything = listed(browser)
    assert len(everything) == 24
    moved = js(browser, "return [...document.querySelectorAll('#rollout-list .change')].map((n) => n.textContent)")
    sizes = [abs(float(text.replace("−", "-"))) for text in moved]
    assert sizes == sorted(sizes, reverse=True)
    choose(browser, "update-choice", "2")
    assert {key.split("/")[0] for key in listed(browser)} == {"2"}
    choose(browser, "reward-choice", "0 0")
    assert sorted(listed(browser)) == ["2/1", "2/2", "2/4", "2/5"]
    keys(browser, "/")
    keys(browser, "question 4")
    assert listed(browser) == ["2/4"]
    assert "1 of the 24 rollouts" in js(browser, "return document.getElementById('rollout-count').textContent")
    keys(browser, "zzz")
    assert listed(browser) == []
    assert "No rollout passes" in js(browser, "return document.getElementById('rollout-detail').textContent")


def test_hovering_shows_the_numbers_and_keys_walk(browser):
    from selenium.webdriver import ActionChains, Keys

    choose(browser, "sort-choice", "update")
    js(browser, "document.querySelector('#rollout-list li').click()")
    token = browser.find_elements("css selector", "#rollout-detail .token")[2]
    js(browser, "arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", token)
    ActionChains(browser).move_to_element(token).perform()
    tip = js(browser, "return document.getElementById('tip').innerText")
    rollout = "rolloutsOf(1).find((r) => r.update === 1 && r.sample === 0)"
    shown = js(browser, f"const r = {rollout}; return [r.H[2], r.P[2], r.id[2]]")
    assert "entropy H" in tip
    assert f"2 · {shown[2]}" in tip
    numbers = [float(word) for word in re.findall(r"-?\d*\.?\d+", tip.replace("−", "-"))]
    for value in shown[:2]:
        assert any(abs(number - value) < 0.006 * abs(value) for number in numbers)
    js(browser, "arguments[0].focus()", token)
    keys(browser, Keys.ARROW_RIGHT)
    assert js(browser, "return document.activeElement.dataset.i") == "3"
    keys(browser, Keys.ESCAPE)
    selected = "return document.querySelector('#rollout-list [aria-selected=true]').dataset.key"
    assert js(browser, selected) == "1/0"
    keys(browser, "jj")
    assert js(browser, selected) == "1/2"
    keys(browser, "k")
    assert js(browser, selected) == "1/1"


def test_colours_follow_what_they_are_told(browser):
    colors = "return [...document.querySelectorAll('#rollout-detail .token')].map((n) => n.style.backgroundColor)"
    seen = {}
    for name in ("polarity", "entropy", "ratio", "clipping", "advantage", "weight", "probability"):
        assert js(browser, "return document.getElementById('color-choice').value") == name
        seen[name] = js(browser, colors)
        keys(browser, "c")
    assert js(browser, "return document.getElementById('color-choice').value") == "polarity"
    signs = js(browser, "const r = filtered()[0]; return r.t.map((_, i) => r.P[i] > 0)")
    assert all(("--expand" in color) == sign for color, sign in zip(seen["polarity"], signs, strict=True))
    assert all("--amount" in color for color in seen["entropy"])
    assert len({tuple(colors) for colors in seen.values()}) >= 5


def test_two_updates_side_by_side_show_the_same_sample(browser):
    choose(browser, "first-choice", "1")
    choose(browser, "second-choice", "2")
    text = js(browser, "return document.getElementById('comparison').textContent")
    assert text.count("the same sample") == 2
    choose(browser, "second-choice", "12")
    assert js(browser, "return document.getElementById('comparison').textContent").count("moved most") == 2


def test_themes_hidden_runs_help_and_a_small_screen(browser):
    theme = "return document.documentElement.dataset.theme"
    before = js(browser, theme)
    keys(browser, "t")
    assert {before, js(browser, theme)} == {"light", "dark"}
    drawn = "return document.getElementById('chart-entropy').data.length"
    count = js(browser, drawn)
    browser.find_elements("css selector", "#legend button")[0].click()
    assert js(browser, drawn) < count
    keys(browser, "?")
    assert js(browser, "return document.getElementById('help').open")
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    )
    browser.refresh()
    assert js(browser, "return [innerWidth, document.documentElement.scrollWidth]") == [390, 390]
