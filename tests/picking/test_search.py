"""The search: what it finds and how little it measures, on simulated machines."""

import contextlib

import numpy as np
import pytest
from fakes import LIMITS, FakeTimer

from zoo.errors import ZooError
from zoo.picking.candidates import candidates
from zoo.picking.predict import Predictor, roofline_ms
from zoo.picking.search import ROUNDS, Search, measure
from zoo.settings import PickConfig


def settings(**changes):
    return PickConfig(**{"ms": 10.0, "runtime": ["onnxruntime"], **changes})


ALL = candidates(settings())


def searched(found, timer, budget, finalists=1):
    search = Search(Predictor(found, LIMITS), timer, budget, finalists)
    while promising := search.promising():
        search.step(promising[0])
    return search


def best_of(found, timer, budget):
    return max((c.value for c in found if timer.ms(c) <= budget), default=None)


def test_it_finds_what_an_exhaustive_search_finds_with_a_fraction_of_the_measurements():
    lost, shares = [], []
    for seed in range(12):
        timer = FakeTimer(seed)
        budget = (8.0, 15.0, 40.0)[seed % 3]
        search = searched(ALL, timer, budget)
        (winner,) = search.final()
        assert timer.ms(winner.candidate) <= 1.05 * budget
        lost.append(best_of(ALL, timer, budget) - winner.candidate.value)
        shares.append(len(timer.opened) / len(ALL))
    assert np.mean(lost) < 0.1
    assert max(lost) <= 0.5
    assert np.mean(shares) < 0.1
    assert max(shares) < 0.2


def test_several_finalists_are_the_best_models():
    timer = FakeTimer(5)
    final = searched(ALL, timer, 10.0, finalists=3).final()
    names = [one.candidate.model for one in final]
    assert len(set(names)) == 3
    best = sorted({c.model: c.value for c in ALL if timer.ms(c) <= 10.0}.values(), reverse=True)
    for one, value in zip(final, best, strict=False):
        assert value - one.candidate.value <= 0.5


def test_int8_is_used_where_float_is_too_slow():
    both = candidates(settings(int8=True, models=["mobilenetv2_*", "efficientformer_*"]))
    timer = FakeTimer(1)
    for budget in (5.0, 10.0, 20.0):
        final = searched(both, timer, budget).final()
        expected = best_of(both, timer, budget)
        assert expected is None or final[0].candidate.value == pytest.approx(expected, abs=0.5)


def test_a_slow_candidate_is_dropped_after_the_first_round():
    calls = iter(np.full(1000, 20.0))
    times, dropped = measure(lambda n: np.array([next(calls) for _ in range(n)]), 10.0)
    assert dropped
    assert times.n == ROUNDS[0]


@pytest.mark.parametrize("budget", [9.0, 11.0])
def test_a_clear_candidate_ends_early_and_one_near_the_budget_is_called_on(budget):
    generator = np.random.default_rng(0)

    def noisy(n):
        return 10 * (1 + 0.3 * generator.standard_normal(n))

    times, dropped = measure(noisy, budget)
    assert dropped == (budget == 9.0) or times.n == ROUNDS[-1]
    times, dropped = measure(lambda n: np.full(n, 10.0) + np.arange(n) / 1e6, 11.0)
    assert (times.n, dropped) == (8, False)


def test_a_model_that_fails_does_not_end_the_search():
    timer = FakeTimer(0)
    (winner,) = searched(ALL, timer, 10.0).final()
    broken = FakeTimer(0, broken=(winner.candidate.model,))
    search = searched(ALL, broken, 10.0)
    assert {c.model for c in search.failed} == {winner.candidate.model}
    assert set(search.failed.values()) == {"it cannot be built"}
    (other,) = search.final()
    assert other.candidate.model != winner.candidate.model


def test_measurements_of_an_earlier_run_are_not_made_again():
    first = searched(ALL, FakeTimer(0), 10.0)
    timer = FakeTimer(0)
    again = Search(Predictor(ALL, LIMITS), timer, 10.0)
    again.recall(first.measured)
    assert again.promising() == []
    assert again.final() == first.final()
    larger = Search(Predictor(ALL, LIMITS), timer, 100.0)
    larger.recall(first.measured)
    assert all(not found.dropped for found in larger.measured), "dropped ones have too few calls"


class BusyOnce(FakeTimer):
    """A machine that is busy, except for single calls, when it measures one model first."""

    def __init__(self, model):
        super().__init__(0)
        self.model = model

    def open(self, candidate):
        is_first = candidate.model == self.model and candidate not in self.opened
        context = super().open(candidate)
        if not is_first:
            return context

        @contextlib.contextmanager
        def slow():
            with context as calls:
                yield lambda count: calls(count) * np.where(np.arange(count) == 3, 1.0, 5.0)

        return slow()


def test_a_candidate_that_was_slow_on_a_busy_machine_has_a_second_chance():
    (expected,) = searched(ALL, FakeTimer(0), 10.0).final()
    search = searched(ALL, BusyOnce(expected.candidate.model), 10.0)
    assert expected.candidate.model not in {one.candidate.model for one in search.final()}
    assert expected.candidate in search.second_chances()
    count = len(search.measured)
    while doubtful := search.second_chances():
        search.repeat(doubtful[0])
    assert len(search.measured) == count
    assert search.final()[0].candidate == expected.candidate
    assert search.final()[0].repeated


def test_a_candidate_without_a_fast_call_has_no_second_chance():
    search = Search(Predictor(ALL, LIMITS), FakeTimer(0), 0.5)
    search.step(ALL[0])
    assert search.measured[0].dropped
    assert search.second_chances() == []


def test_predictions_are_a_roofline_at_first_and_learn_from_relatives():
    predictor = Predictor(ALL, LIMITS)
    one = next(c for c in ALL if c.model == "mobilenetv2_100")
    relative = next(c for c in ALL if c.model == "mobilenetv2_140")
    stranger = next(c for c in ALL if c.family == "tinyvit")
    base = {c: roofline_ms(c, LIMITS) for c in ALL}
    assert predictor.ms(one) == pytest.approx(base[one])
    assert predictor.chance(one, base[one]) == pytest.approx(0.5)
    wide = predictor.chance(relative, 2 * base[relative])
    predictor.learn(one, 3 * base[one])
    ratio = {c: predictor.ms(c) / base[c] for c in (one, relative, stranger)}
    assert 1 < ratio[stranger] < ratio[relative] < ratio[one] < 3
    assert predictor.chance(relative, 2 * predictor.ms(relative)) > wide, "now it is more certain"


def test_the_roofline_adds_computing_and_moving():
    one = ALL[0]
    seconds = one.macs / 45e9 + one.moved_bytes / 9e9
    assert roofline_ms(one, LIMITS) == pytest.approx(1e3 * seconds)


def test_candidates_are_ours_and_timms_with_accuracy_counts_and_weights():
    assert len(ALL) > 150
    assert [c.value for c in ALL] == sorted((c.value for c in ALL), reverse=True)
    assert {c.model.startswith("timm/") for c in ALL} == {True, False}
    sizes = {c.size for c in ALL if c.model == "timm/mobilenetv4_conv_small.e2400_r224_in1k"}
    assert sizes == {224, 256}
    assert all(c.macs > 0 and c.moved_bytes > 0 and 50 < c.top1 < 90 for c in ALL)


def test_filters_keep_what_they_say():
    found = candidates(settings(top1=80, size=[224], licence=["apache*", "MIT"]))
    assert found
    for one in found:
        assert one.top1 >= 80
        assert one.size == 224
        assert one.licence.lower().startswith(("apache", "mit"))
    forms = {c.form for c in candidates(settings(int8=True, models=["mobilenetv2_100"]))}
    assert forms == {"onnxruntime", "onnxruntime int8"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": [7]}, "--size 7: no candidate is left; sizes with a published accuracy: [128"),
        ({"licence": ["gpl*"]}, "--licence gpl*: no candidate is left; licences of weights: ["),
        ({"top1": 99}, "--top1 99: no candidate is left; the best candidate has"),
        ({"models": ["asvit_small"]}, "--models asvit_small: none of them has a published"),
        ({"models": ["mobilnet"]}, "unknown model 'mobilnet'"),
        ({"runtime": ["onnx"]}, "unknown runtime 'onnx'. Choices: eager"),
        ({"runtime": ["eager"], "int8": True}, "--int8: no int8 files for eager"),
    ],
)
def test_what_leaves_no_candidate_is_an_error(changes, message):
    with pytest.raises(ZooError) as error:
        candidates(settings(**changes))
    assert message in str(error.value)
