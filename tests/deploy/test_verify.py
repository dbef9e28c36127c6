"""The comparison of outputs: what passes, what fails, and what counts as not proven."""

import numpy as np
import pytest

import zoo
from zoo.deploy.agreement import compare_outputs, random_batches


class Function:
    """A runtime that calls a function."""

    def __init__(self, compute) -> None:
        self.compute = compute

    def __call__(self, batch):
        return [np.asarray(y, np.float32) for y in self.compute(batch)]


def means(x):
    return (x.mean((2, 3)),)


def compare(model, artefact, batch_sizes=(1, 3)):
    return compare_outputs(Function(model), Function(artefact), (3, 8, 8), batch_sizes)


def test_equal_outputs_are_proven_equal():
    result = compare(means, lambda x: (means(x)[0] + 1e-6,))
    assert result.proven
    assert result.max_abs_error == pytest.approx(1e-6, rel=0.2)
    assert result.max_rel_error == pytest.approx(result.max_abs_error / result.spread)
    assert result.batch_sizes == [1, 3]
    assert result.images == 12
    assert str(result).startswith("equal: largest error")


@pytest.mark.parametrize(
    "artefact",
    [
        lambda x: (1.01 * means(x)[0],),
        lambda x: (means(x)[0][:, ::-1],),
        lambda x: (means(x)[0] * np.nan,),
        lambda x: (np.zeros((len(x), 3)),),
    ],
)
def test_different_outputs_fail(artefact):
    with pytest.raises(zoo.NotExportable, match="does not match the model"):
        compare(means, artefact)


def test_a_fault_at_one_batch_size_is_found():
    with pytest.raises(zoo.NotExportable, match="does not match the model"):
        compare(means, lambda x: (means(x)[0] * (1 if len(x) == 1 else 2),))


def test_a_fault_in_the_second_output_is_found():
    with pytest.raises(zoo.NotExportable, match="does not match the model"):
        compare(lambda x: (*means(x), x), lambda x: (*means(x), -x))


def test_outputs_of_another_shape_or_number_fail():
    with pytest.raises(zoo.NotExportable, match="for a batch of 1 it returns shapes"):
        compare(means, lambda x: (means(x)[0][:, :2],))
    with pytest.raises(zoo.NotExportable, match="it returns shapes"):
        compare(means, lambda x: (*means(x), *means(x)))


def test_outputs_that_hardly_depend_on_the_image_are_not_proven_equal():
    def stuck(x):
        return (5 + 5e-6 * means(x)[0],)  # what float32 still tells apart

    result = compare(stuck, lambda x: (np.full((len(x), 3), 5.0),))
    assert 0 < result.spread < 1e-4
    assert not result.proven, "an artefact that ignores the image must not pass as equal"
    assert str(result).startswith("NOT PROVEN")

    def slightly(x):
        return (5 + 2e-3 * means(x)[0],)

    assert not compare(slightly, slightly).proven, "a spread of 1e-4 of the values is too small"
    assert not compare(
        lambda x: (np.zeros((len(x), 3)),) * 2, lambda x: (np.zeros((len(x), 3)),) * 2
    ).proven


def test_one_output_that_is_not_proven_makes_the_result_not_proven():
    def half(x):
        return (*means(x), np.ones((len(x), 2)))

    assert not compare(half, half).proven


def test_a_constant_offset_does_not_increase_the_allowed_error():
    def offset(x):
        return (100 + means(x)[0],)

    with pytest.raises(zoo.NotExportable, match="does not match the model"):
        compare(offset, lambda x: (100 + 0.98 * means(x)[0],))


def test_outputs_that_are_not_finite_cannot_be_compared():
    with pytest.raises(zoo.NotExportable, match="not finite"):
        compare(lambda x: (np.full(x.shape, np.inf),), lambda x: (x,))


def test_random_images_have_several_scales_and_are_reproducible():
    first, again = (list(random_batches((3, 16, 12), (1, 2))) for _ in range(2))
    assert [x.shape for x in first] == [(n, 3, 16, 12) for n in (1, 1, 1, 2, 2, 2)]
    assert all(np.array_equal(x, y) for x, y in zip(first, again, strict=True))
    scales = [x.std() for x in first[3:]]
    assert scales[2] > 5 * scales[0]


def lossy(x):
    """The means with a float32 loss of 0.4 % of their spread."""
    return (means(x)[0] + 0.004 * means(x)[0].std() * np.sign(means(x)[0]),)


def lossy_downwards(x):
    """The same loss in the other direction."""
    return (2 * means(x)[0] - lossy(x)[0],)


def test_a_model_that_loses_much_in_float32_is_allowed_three_times_its_own_loss():
    with pytest.raises(zoo.NotExportable, match="does not match the model"):
        compare(lossy, lossy_downwards)
    exact = Function(means)
    result = compare_outputs(
        Function(lossy), Function(lossy_downwards), (3, 8, 8), (2,), load_double=lambda: exact
    )
    assert result.proven
    assert result.own_error == pytest.approx(result.max_abs_error / 2, rel=1e-3)
    assert result.allowed == pytest.approx(3 * result.own_error)
    assert "loses" in str(result)
    wrong = Function(lambda x: (1.1 * means(x)[0],))
    with pytest.raises(zoo.NotExportable, match="does not match the model"):
        compare_outputs(Function(lossy), wrong, (3, 8, 8), (2,), load_double=lambda: exact)


def test_float64_is_not_run_unless_needed():
    def never():
        raise AssertionError

    function = Function(means)
    assert compare_outputs(function, function, (3, 8, 8), (2,), load_double=never).own_error is None


def test_a_model_that_loses_nearly_everything_in_float32_is_not_proven():
    noisy = Function(lambda x: (1.2 * means(x)[0],))
    exact = Function(means)
    result = compare_outputs(noisy, exact, (3, 8, 8), (2,), load_double=lambda: exact)
    assert not result.proven
