"""Threads and processes far beyond the machine are refused in one line."""

import pytest

from zoo import runtimes
from zoo.errors import BadInput
from zoo.settings import TrainConfig
from zoo.training.checks import check_train


def test_threads():
    with pytest.raises(BadInput, match="^threads=1000000 is too many for .* cores; use at most"):
        runtimes.check_settings("eager", threads=1_000_000)
    runtimes.check_settings("eager", threads=2)


def test_processes():
    with pytest.raises(BadInput, match="^train.devices=1000000 starts as many processes"):
        check_train(TrainConfig(devices=1_000_000))
    check_train(TrainConfig(devices=2))
