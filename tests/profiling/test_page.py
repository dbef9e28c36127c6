"""The HTML page of a report in a real browser, opened from a file without a network."""

import json
import shutil

import pytest
from synthetic import record

import zoo
from zoo.reports.report import write

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1400,1000",
)
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="chromium or chromedriver is not installed"
)
EVIL = "</script><img src=x onerror=window.broken=1>"


def layers(names):
    rows = [
        {
            "name": name,
            "type": "Conv2d 3x3",
            "ms": float(i + 1),
            "macs": 10**6,
            "params": 9,
            "bytes": 2**20,
            "bound": ("memory", "compute", "overhead")[i % 3],
        }
        for i, name in enumerate(names)
    ]
    return {"layers": rows, "roofline": {"gmacs_per_s": 50.0, "gbytes_per_s": 10.0}}


def records():
    """Return records of real models, whose order by name differs from that by latency."""
    times = {"efficientformer_l1": 20.0, "mobilenetv2_100": 9.0, "efficientformer_l3": 50.0}
    rows = []
    for name, ms in times.items():
        size = [1, *zoo.model_info(name)["input"]["size"]]
        for fused, runtime in ((False, "eager"), (True, "eager"), (True, "onnxruntime")):
            factor = (0.8 if fused else 1.0) * (0.5 if runtime == "onnxruntime" else 1.0)
            figures = {
                key: ms * factor * part
                for key, part in (("low_ms", 0.99), ("p50_ms", 1), ("high_ms", 1.01))
            }
            rows.append(
                record(model=name, input_size=size, fused=fused, runtime=runtime, **figures)
            )
    rows[0]["layers"] = layers(["stem.conv", "stages.0.blocks.0.mlp", "head"])
    rows[3]["layers"] = layers(["features", "classifier"])
    rows.append(record(model=EVIL, p50_ms=1.0, machine={EVIL: EVIL}, command=EVIL))
    return rows


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def page(browser, tmp_path):
    """Load the page; any message in the console of the browser fails the test."""
    source = tmp_path / "mine.jsonl"
    source.write_text("".join(json.dumps(r) + "\n" for r in records()))
    browser.get(write(source)[2].as_uri())
    yield browser
    assert browser.get_log("browser") == []
    assert browser.execute_script("return window.broken") is None


def all_of(page, selector):
    from selenium.webdriver.common.by import By

    return page.find_elements(By.CSS_SELECTOR, selector)


def one(page, selector):
    (found,) = all_of(page, selector)
    return found


def shown(page, table, column=1):
    cells = all_of(page, f"{table} tbody tr:not([hidden]) td:nth-child({column})")
    return [cell.text for cell in cells]


def heading(page, table, title):
    headings = all_of(page, f"{table} th button")
    texts = [button.text.split(" \u25b2")[0].split(" \u25bc")[0] for button in headings]
    return headings[texts.index(title)], texts.index(title) + 1


def choose(page, selector, text):
    from selenium.webdriver.support.select import Select

    Select(one(page, selector)).select_by_visible_text(text)


def test_the_page_shows_every_record_and_the_machine(page):
    assert page.title == "mine"
    assert len(shown(page, "#rows")) == 10
    assert shown(page, "#rows")[-1] == EVIL
    assert one(page, "#shown").text == "10 of 10 measurements"
    assert "A, B" in one(page, "#environments").text
    assert "All measured with batch 1, threads 2, dtype float32" in one(page, "#shared").text


def test_the_page_loads_no_resources(page):
    loaded = page.execute_script("return performance.getEntriesByType('resource').length")
    assert loaded == 0


def test_clicking_a_heading_sorts_and_clicking_again_reverses(page):
    button, column = heading(page, "#rows", "p50 ms")
    button.click()
    rising = [float(text) for text in shown(page, "#rows", column)]
    assert rising == sorted(rising)
    assert rising != sorted(r["p50_ms"] for r in records())[::-1]
    assert one(page, "#rows th[aria-sort=ascending]").text.startswith("p50 ms")
    button.click()
    assert [float(text) for text in shown(page, "#rows", column)] == rising[::-1]
    button, column = heading(page, "#rows", "model")
    button.click()
    names = shown(page, "#rows", column)
    assert names[1:] == sorted(names[1:])
    assert len(names) == 10


def test_missing_values_stay_last_in_both_orders(page):
    button, column = heading(page, "#rows", "top-1")
    for _ in range(2):
        button.click()
        assert shown(page, "#rows", column)[-1] == ""
        assert shown(page, "#rows", column)[0] != ""


def test_the_filter_requires_every_word(page):
    box = one(page, "#filter")
    box.send_keys("EFFICIENTFORMER onnx")
    assert shown(page, "#rows") == ["efficientformer_l1", "efficientformer_l3"]
    assert one(page, "#shown").text == "2 of 10 measurements"
    box.clear()
    box.send_keys("nothing of that name")
    assert shown(page, "#rows") == []
    box.clear()
    box.send_keys("x")
    box.send_keys("\ue003")  # backspace
    assert len(shown(page, "#rows")) == 10


def test_the_filter_fades_points_that_do_not_match(page):
    one(page, "#filter").send_keys("mobilenetv2_100")
    states = {
        (point.get_attribute("data-model"), "faded" in point.get_attribute("class"))
        for point in all_of(page, "#points .point")
    }
    assert ("mobilenetv2_100", False) in states
    assert ("efficientformer_l1", True) in states


def hovered(page, element):
    from selenium.webdriver import ActionChains

    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    ActionChains(page).move_to_element(element).perform()
    tip = one(page, "#tip")
    assert tip.is_displayed()
    return tip.text


def test_hovering_over_a_point_shows_its_values(page):
    (point,) = all_of(page, "#points circle[data-model=efficientformer_l1]")
    text = hovered(page, point)
    assert text.startswith("efficientformer_l1, fused, 224x224")
    top1 = max(e["top1"] for e in zoo.model_info("efficientformer_l1")["published"])
    assert f"top-1 {top1} (" in text
    assert "p50 ms 16.00" in text
    hovered(page, all_of(page, "#flame rect")[0])
    from selenium.webdriver import ActionChains

    ActionChains(page).move_to_element(one(page, "h1")).perform()
    assert not one(page, "#tip").is_displayed()


def test_the_plot_shows_one_setting_and_its_pareto_front(page):
    assert len(all_of(page, "#points .point")) == 6
    fronts = {p.get_attribute("data-model") for p in all_of(page, "#points .point.front")}
    assert fronts == {"mobilenetv2_100", "efficientformer_l1", "efficientformer_l3"}
    choose(page, "#setting", all_of(page, "#setting option")[1].text)
    assert len(all_of(page, "#points .point")) == 3
    assert "1 of 10 measurements have no published top-1 accuracy" in one(page, "#plot-notes").text


def test_choosing_a_model_shows_its_layers(page):
    assert sorted(shown(page, "#layer-rows")) == ["head", "stages.0.blocks.0.mlp", "stem.conv"]
    assert shown(page, "#layer-rows")[0] == "head", "the slowest layer comes first"
    choose(page, "#model", "mobilenetv2_100, unfused, 1x3x224x224")
    assert shown(page, "#layer-rows") == ["classifier", "features"]
    names = [rect.get_attribute("data-name") for rect in all_of(page, "#flame rect")]
    assert names == ["", "features", "classifier"]
    widths = [float(rect.get_attribute("width")) for rect in all_of(page, "#flame rect")]
    assert widths == pytest.approx([1400, 1400 / 3, 2800 / 3])
    text = hovered(page, all_of(page, "#flame rect")[2])
    assert text.startswith("classifier\nConv2d 3x3\n2.000 ms")
    assert "bound by compute" in text


def test_clicking_a_model_shows_its_layers(page):
    page.execute_script("document.querySelector('#rows tbody').scrollIntoView({block: 'center'})")
    (button, *_) = [b for b in all_of(page, "#rows td button") if b.text == "mobilenetv2_100"]
    button.click()
    assert shown(page, "#layer-rows") == ["classifier", "features"]


def test_fused_and_unfused_models_are_paired(page):
    assert shown(page, "#pairs") == ["efficientformer_l1", "mobilenetv2_100", "efficientformer_l3"]
    _, column = heading(page, "#pairs", "ratio")
    assert shown(page, "#pairs", column) == ["0.800"] * 3
    _, column = heading(page, "#pairs", "fused is")
    assert shown(page, "#pairs", column) == ["faster"] * 3


def test_records_without_layers_pairs_or_accuracy(browser, tmp_path):
    source = tmp_path / "bare.jsonl"
    bare = {"model": "mine", "input_size": [1, 3, 8, 8], "runtime": "eager", "p50_ms": 1.0}
    source.write_text(json.dumps(bare) + "\n")
    browser.get(write(source)[2].as_uri())
    assert shown(browser, "#rows") == ["mine"]
    assert "profile.layers=true" in one(browser, "#layers-notes").text
    assert "None of these models" in one(browser, "#plot-notes").text
    assert "profile.fused=both" in one(browser, "#fusing").text
    assert browser.get_log("browser") == []
