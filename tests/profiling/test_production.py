"""Latency as in production, on a simulated clock: schedules, steps, curves, sensors."""

import itertools
import os

import pytest
from synthetic import Clock, record

from zoo.errors import BadInput
from zoo.profiling import production
from zoo.profiling.plan import make_plan
from zoo.profiling.production import Production, Sensors, paced, pipeline, sustained
from zoo.profiling.timing import MeasurementBudget
from zoo.reports.schema import find_fault
from zoo.settings import ProfileConfig


class Sleeper:
    """Sleeps on a simulated clock, too long by `late` seconds."""

    def __init__(self, clock, late=0.0):
        self.clock, self.late, self.slept = clock, late, []

    def __call__(self, seconds):
        self.slept.append(seconds)
        self.clock.now += seconds + self.late


def test_calls_on_a_schedule():
    clock = Clock()
    found = paced(
        clock.taking(itertools.repeat(0.004)), 100, 70, clock=clock, sleep=Sleeper(clock, 0.001)
    )
    assert (found["pace"], found["n"], found["missed"]) == (100, 70, 0)
    assert found["latency_p50_ms"] == pytest.approx(4)
    assert found["late_p50_ms"] == pytest.approx(1)
    assert found["response_p90_ms"] == pytest.approx(5)
    assert clock.now == pytest.approx(0.7 + 0.005), "the calls keep to the schedule"


def test_a_call_that_is_too_slow_delays_those_behind_it():
    clock = Clock()
    durations = [0.004, 0.025, *[0.004] * 4]
    found = paced(clock.taking(durations), 100, 6, clock=clock, sleep=Sleeper(clock))
    # Due at 0, 10, 20, ... ms; the second ends at 35 instead of 20, and the next two at 39 and 43.
    assert found["late_max_ms"] == pytest.approx(15)
    assert found["response_max_ms"] == pytest.approx(25)
    assert found["missed"] == pytest.approx(3 / 6)
    assert found["latency_p50_ms"] == pytest.approx(4)


@pytest.mark.parametrize(
    ("budget", "calls"),
    [((50, 1.0, 15.0), 50), ((50, 10.0, 15.0), 300), ((500, 1.0, 2.0), 60), ((5, 0.0, 0.01), 1)],
)
def test_a_schedule_keeps_to_the_budget(budget, calls):
    assert production.budget_calls(MeasurementBudget(*budget), 30) == calls


class Model:
    """Takes 6 ms a call, and keeps what it was called with."""

    def __init__(self, clock):
        self.clock, self.batches = clock, []

    def __call__(self, batch):
        self.batches.append(batch.copy())
        self.clock.now += 0.006


def test_steps_from_jpeg_to_output_and_their_shares(monkeypatch):
    clock = Clock()
    model = Model(clock)
    for name, seconds in (("convert", 0.003), ("resize_and_crop", 0.001)):
        real = getattr(production, name)

        def slow(*args, real=real, seconds=seconds):
            clock.now += seconds
            return real(*args)

        monkeypatch.setattr(production, name, slow)
    budget = MeasurementBudget(5, 0.0, 10.0)
    found = pipeline(model, (1, 3, 32, 48), budget, clock=clock)
    assert found["n"] == 5
    assert found["total_p50_ms"] == pytest.approx(10)
    shares = [found[f"{step}_share"] for step in production.STEPS]
    assert shares == pytest.approx([0.3, 0.1, 0.0, 0.6])
    assert {batch.shape for batch in model.batches} == {(1, 3, 32, 48)}
    assert abs(model.batches[0].mean()) < 1.5, "normalised"
    assert model.batches[0].std() > 0.3
    batch = pipeline(Model(clock), (2, 1, 16, 16), budget, clock=clock)
    assert batch["decode_p50_ms"] == pytest.approx(6), "two pictures"


def test_the_picture_is_always_the_same():
    assert production.photo_jpeg() == production.photo_jpeg()
    with pytest.raises(BadInput, match=r"profile.input=jpeg needs a model that takes images"):
        pipeline(Model(Clock()), (1, 4, 8, 8), MeasurementBudget())


@pytest.fixture
def sys_folder(tmp_path):
    """A folder like /sys, with the frequency of each usable core and two temperatures."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    for number, core in enumerate(cores):
        folder = tmp_path / f"devices/system/cpu/cpu{core}/cpufreq"
        folder.mkdir(parents=True)
        (folder / "scaling_cur_freq").write_text(f"{2_000_000 + 100_000 * number}\n")
    for number, text in enumerate(("45000\n", "51500\n", "broken")):
        folder = tmp_path / f"class/thermal/thermal_zone{number}"
        folder.mkdir(parents=True)
        (folder / "temp").write_text(text)
    return tmp_path, len(cores)


def test_sensors(sys_folder, tmp_path):
    root, cores = sys_folder
    sensors = Sensors(root)
    assert sensors.celsius() == 51.5
    if cores:
        assert sensors.mhz() == pytest.approx(2000 + 100 * (cores - 1) / 2)
    nothing = Sensors(tmp_path / "nowhere")
    assert (nothing.mhz(), nothing.celsius()) == (None, None)


def test_a_curve_over_time(sys_folder, tmp_path):
    root, _ = sys_folder
    clock = Clock()
    durations = (0.010 if n < 3000 else 0.015 for n in itertools.count())
    found = sustained(clock.taking(durations), 60, clock=clock, sensors=Sensors(root))
    curve = found["curve"]
    assert 58 <= len(curve) <= 60
    assert curve[0]["p50_ms"] == pytest.approx(10)
    assert curve[0]["calls"] == pytest.approx(100, abs=1)
    assert curve[-1]["celsius"] == 51.5
    assert found["slowdown"] == pytest.approx(1.5)
    assert curve[-1]["t_s"] == pytest.approx(60, abs=0.02)
    short = sustained(clock.taking([0.2] * 3), 0.5, clock=clock, sensors=Sensors(tmp_path / "no"))
    assert [set(row) for row in short["curve"]] == [{"t_s", "calls", "p50_ms"}]
    assert find_fault(record(sustained=found)) == find_fault(record(sustained=short)) == ""


def whole():
    """Return a record with all three measurements."""
    clock = Clock()
    call = clock.taking(itertools.repeat(0.004))
    return record(
        paced=paced(call, 100, 70, clock=clock, sleep=Sleeper(clock)),
        pipeline=pipeline(Model(clock), (1, 3, 8, 8), MeasurementBudget(3, 0, 1), clock=clock),
        sustained=sustained(call, 2, clock=clock),
    )


def test_records_have_a_schema_and_a_line_each():
    row = whole()
    assert find_fault(row) == ""
    lines = production.lines(row)
    assert lines[0].startswith("net in eager, 100 calls per second: latency 4.00 ms, late by 0")
    assert "model 6.00 ms 100%" in lines[1]
    assert lines[2].startswith("net in eager, 2 s without a break: 4.00 ms at first, 4.00 ms at")
    assert production.lines(record()) == []


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("paced", lambda v: v.pop("missed"), "lacks missed"),
        ("paced", lambda v: v.update(late_p50_ms=-1), "has late_p50_ms, which is negative"),
        ("pipeline", lambda v: v.update(decode_share="a"), "has decode_share, which is not a num"),
        ("sustained", lambda v: v.update(curve=[]), "has no curve"),
        ("sustained", lambda v: v["curve"][0].pop("t_s"), "has a point that lacks t_s"),
    ],
)
def test_damaged_records_are_refused(key, change, message):
    row = whole()
    change(row[key])
    assert message in find_fault(row)
    assert "is not an object" in find_fault(record(**{key: [1]}))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"pace": 0}, "profile.pace=0 must be calls per second"),
        ({"pace": float("nan")}, "profile.pace=nan must be calls per second"),
        ({"input": "png"}, "profile.input='png' must be tensor or jpeg"),
        ({"sustain": -1}, "profile.sustain=-1 must be seconds, at most a day"),
        ({"sustain": 1e9}, "profile.sustain=1000000000.0 must be seconds"),
    ],
)
def test_settings_that_cannot_work(setting, message):
    with pytest.raises(BadInput) as error:
        make_plan(["mobilenetv2_035"], {}, ProfileConfig(**setting))
    assert message in str(error.value)


def test_records_without_these_measurements_keep_their_identity():
    plain = make_plan(["mobilenetv2_035"], {}, ProfileConfig())
    assert not {"pace", "input", "sustain"} & set(plain.requested_settings())
    asked = make_plan(["mobilenetv2_035"], {}, ProfileConfig(pace=30.0, input="jpeg"))
    assert {"pace": 30.0, "input": "jpeg"}.items() <= asked.requested_settings().items()
    assert Production().measure(None, (1, 3, 8, 8), "eager", MeasurementBudget()) == {}
