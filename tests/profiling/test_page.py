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
    rows[1]["paired"] = {"ratio": 0.8, "low": 0.79, "high": 0.81, "n": 50}
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
    assert page.title == "4 backbones on A, B, 2 threads, eager and onnxruntime"
    assert one(page, "#summary").text.startswith("mine: 10 measurements of 4 models")
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


def points(page):
    """Return whether each model in the plot is faded, and whether it is on the front."""
    states = {}
    for point in all_of(page, "#points .point"):
        names = point.get_attribute("class").split()
        states[point.get_attribute("data-model")] = ("faded" in names, "front" in names)
    return states


def test_filters_fade_points_and_the_front_follows(page):
    assert points(page)["efficientformer_l1"] == (False, True)
    one(page, "#filter").send_keys("mobilenetv2_100")
    assert points(page)["mobilenetv2_100"] == (False, True)
    assert points(page)["efficientformer_l1"] == (True, False)


@pytest.mark.parametrize(
    ("limit", "value", "left"),
    [
        ("top1", "78", {"efficientformer_l1", "efficientformer_l3"}),
        ("ms", "8", {"mobilenetv2_100", "efficientformer_l1", EVIL}),
        ("params", "13", {"efficientformer_l1", "mobilenetv2_100", "efficientformer_l3", EVIL}),
    ],
)
def test_numeric_filters(page, limit, value, left):
    one(page, f"#limit-{limit}").send_keys(value)
    expected = left if limit == "params" else left - {EVIL} if limit == "top1" else left
    assert set(shown(page, "#rows")) == expected
    assert {name for name, (faded, _) in points(page).items() if not faded} <= expected


def test_the_image_size_filters(page):
    choose(page, "#image", "224x224")
    assert len(shown(page, "#rows")) == 10


def hovered(page, element):
    from selenium.webdriver import ActionChains

    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    ActionChains(page).move_to_element(element).perform()
    tip = one(page, "#tip")
    assert tip.is_displayed()
    return tip.text


def test_hovering_over_a_point_shows_its_values(page):
    choose(page, "#setting", "eager 2.15.0, machine 1")
    (point,) = all_of(page, "#points [data-model=efficientformer_l1]")
    text = hovered(page, point)
    assert text.startswith("efficientformer_l1, fused, 224x224")
    top1 = max(e["top1"] for e in zoo.model_info("efficientformer_l1")["published"])
    assert f"top-1 {top1} (" in text
    assert "median 16.00 ms, 95 % interval 15.84 to 16.16" in text
    assert "runtime eager 2.15.0" in text
    hovered(page, all_of(page, "#flame rect")[0])
    from selenium.webdriver import ActionChains

    ActionChains(page).move_to_element(one(page, "h1")).perform()
    assert not one(page, "#tip").is_displayed()


def test_the_plot_opens_with_the_fastest_runtime_and_fused_models(page):
    first = page.execute_script("return document.getElementById('setting').value")
    assert first == "onnxruntime 2.15.0, machine 1"
    assert set(points(page)) == {"mobilenetv2_100", "efficientformer_l1", "efficientformer_l3"}
    assert all(front for _, front in points(page).values())


def test_the_variant_and_the_cost_can_be_chosen(page):
    choose(page, "#setting", "eager 2.15.0, machine 1")
    assert len(all_of(page, "#points .point")) == 3
    choose(page, "#variant", "all")
    assert len(all_of(page, "#points .point")) == 6
    before = [p.get_attribute("aria-label") for p in all_of(page, "#points .point")]
    choose(page, "#axis", "parameters")
    assert "parameters (logarithmic)" in one(page, "#points").text
    assert len(all_of(page, "#points .point")) == len(before)


def test_models_without_a_published_accuracy_are_in_a_strip(page):
    choose(page, "#setting", "eager 2.15.0, machine 2")
    choose(page, "#variant", "unfused")
    (peer,) = all_of(page, "#points .point")
    assert peer.get_attribute("data-model") == EVIL
    assert "no published top-1" in peer.get_attribute("aria-label")
    assert "None of these models" in one(page, "#plot-notes").text


def test_all_models_of_a_small_plot_are_named(page):
    choose(page, "#setting", "eager 2.15.0, machine 1")
    choose(page, "#variant", "all")
    names = [text.text for text in all_of(page, "#points text.name")]
    assert sorted(names) == sorted(
        2 * ["mobilenetv2_100", "efficientformer_l1", "efficientformer_l3"]
    )


def test_names_neither_take_the_pointer_nor_cover_points(page):
    script = """
    const names = [...document.querySelectorAll('#points text.name')];
    const boxes = (list) => list.map((node) => node.getBBox());
    const meets = (a, b) => a.x < b.x + b.width && b.x < a.x + a.width
        && a.y < b.y + b.height && b.y < a.y + a.height;
    const others = boxes([...document.querySelectorAll('#points .point')]);
    return [names.length, names.every((n) => getComputedStyle(n).pointerEvents === 'none'),
        boxes(names).some((a) => others.some((b) => meets(a, b)))];
    """
    assert page.execute_script(script) == [3, True, False]


def test_families_have_their_own_colour_and_shape(page):
    script = """
    const styles = families.map((name) => Object.values(styleOf(name)).join());
    return [plot.svg.querySelectorAll('.family').length, styles];
    """
    count, styles = page.execute_script(script)
    assert count == 2
    assert len(set(styles)) == len(styles) == 3, "the third has no family"


def test_the_drawing_is_saved_with_its_title_and_colours(page):
    text = page.execute_script("return plot.file('a <title>')")
    assert text.startswith("<svg")
    assert "a &lt;title&gt;" in text
    assert "--accent: #" in text
    page.execute_script("""
        window.saved = [];
        save = (name, blob) => window.saved.push([name, blob.type, blob.size]);
    """)
    one(page, "#svg").click()
    one(page, "#png").click()
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(page, 20).until(lambda d: d.execute_script("return window.saved.length") == 2)
    saved = page.execute_script("return window.saved")
    assert [entry[:2] for entry in saved] == [
        ["accuracy.svg", "image/svg+xml"],
        ["accuracy.png", "image/png"],
    ]
    assert all(size > 1000 for *_, size in saved)


def test_a_narrow_screen_shows_few_columns_and_readable_text(page):
    metrics = {"width": 420, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        page.refresh()
        assert page.execute_script("return document.documentElement.scrollWidth") <= 420
        heads = [button.text for button in all_of(page, "#rows th button") if button.is_displayed()]
        assert heads == ["model", "variant", "runtime", "top-1", "p50 ms"]
        sizes = page.execute_script("""
            return [...document.querySelectorAll('#points text')].map(
                (t) => t.getBoundingClientRect().height);
        """)
        assert min(sizes) >= 11
        page.execute_script("document.getElementById('measurements').scrollIntoView()")
        assert (
            page.execute_script(
                "return document.querySelector('#measurements h2').getBoundingClientRect().top"
            )
            >= 0
        )
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_model_stays_visible_when_a_table_scrolls_sideways(page):
    script = """
    const box = document.querySelector('#measurements .scroll');
    box.scrollLeft = 400;
    const cell = box.querySelector('td');
    return [box.scrollLeft, cell.getBoundingClientRect().left - box.getBoundingClientRect().left];
    """
    scrolled, left = page.execute_script(script)
    assert scrolled > 100
    assert abs(left) < 3


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
    assert shown(page, "#pairs", column) == ["faster", "not timed in turn", "not timed in turn"]


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
