"""The table of records for the terminal."""

import pytest
from rich.console import Console
from synthetic import record

from zoo.display import quantity
from zoo.reports.table import legend, table


def text(records, width=300):
    console = Console(width=width)
    with console.capture() as capture:
        console.print(table(records, width)[0])
    return capture.get()


def test_a_row_contains_the_variant_and_all_values():
    rows = text([record(), record(fused=True, params=12_000)]).splitlines()
    unfused, fused = (row.split() for row in rows if "net" in row)
    assert unfused[:2] == ["net", "unfused"]
    assert fused[:2] == ["net", "fused"]
    figures = "12.29 M 1.30 G 12.35 ±2 % 13.00 15.00 11.90 1000 2.70 G 5.53 k"
    assert " ".join(unfused[2:]) == figures
    assert fused[2:4] == ["12.00", "k"]


def test_only_settings_that_differ_have_a_column():
    one, two = record(), record(runtime="onnxruntime", runtime_version="1.31", threads=1)
    assert "eager" not in text([one])
    assert legend([one]) == [
        "eager 2.15.0, image 224x224, batch 1, threads 2, dtype float32, layout NCHW"
    ]
    header = text([one, two]).splitlines()[0].split()
    assert header[2:4] == ["runtime", "threads"]
    assert legend([one, two])[0].startswith("eager 2.15.0, onnxruntime 1.31, image 224x224")


def test_memory_and_energy_have_columns_only_if_measured():
    assert "memory" not in text([record(peak_memory_bytes=None, energy_j=None)])
    measured = text([record(peak_memory_bytes=3 * 2**20, energy_j=0.5), record(energy_j=12.345)])
    assert {"memory", "energy"} <= set(measured.splitlines()[0].split())
    assert "3.0 MiB" in measured
    assert "500.0 mJ" in measured
    assert "12.35 J" in measured


def test_missing_values_are_marked():
    uncounted = record(macs=None, flops=None, activations=None, count_error="no rule for x")
    assert text([uncounted]).split().count("uncounted") == 3
    failed = {k: v for k, v in record(error="it broke").items() if not k.endswith("_ms")}
    assert "failed" in text([failed])
    assert "12.35*" in text([record(steady=False)])
    assert legend([record(steady=False)])[1].startswith("* median not stable")


def test_few_calls_have_no_percentiles():
    header = text([record(n=63)]).splitlines()[0].split()
    assert not {"p90", "p99"} & set(header)
    assert "p90" in text([record(n=64)])
    assert "p99" not in text([record(n=661)])
    assert "p99" in text([record(n=662)])


def test_wide_intervals_are_marked():
    wide = record(p50_ms=10.0, low_ms=9.5, high_ms=11.1)
    assert "±11 %!" in text([wide])
    assert legend([wide])[-1].startswith("! interval wider than ±10 %: the machine was busy")
    assert "!" not in text([record(p50_ms=10.0, low_ms=9.0, high_ms=11.0)])


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_the_table_fits_the_terminal(width):
    one = record(model="wavemix_seg_192_16_l3_cityscapes", peak_memory_bytes=2**20)
    other = record(runtime="onnxruntime", input_size=[8, 3, 1024, 512], steady=False, n=10**6)
    shown = text([one, other], width)
    assert max(len(line) for line in shown.splitlines()) <= width
    assert "12.35*" in shown
    _, omitted = table([one, other], width)
    assert ("activations" in omitted) == (width < 150)
    if omitted:
        assert f"recorded: {', '.join(omitted)}" in legend([one, other], omitted)[1]


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, "0"), (999, "999"), (1000, "1.00 k"), (12_289_928, "12.29 M"), (123_456_789, "123.5 M")],
)
def test_quantities(value, expected):
    assert quantity(value) == expected
