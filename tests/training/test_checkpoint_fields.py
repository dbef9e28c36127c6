"""A checkpoint with any missing, added, wrong or contradictory entry gives one line."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from zoo.errors import BadWeights, ZooError
from zoo.training import checkpoint, checkpoint_schema

from .conftest import resume_run

HUGE = 10**30


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Return the run folder of a run without batch norms after one epoch, and its checkpoint."""
    from zoo.command_line.composition import run as run_command

    overrides = [
        *("model=cct_2_3x2_32", "data.image_size=32", "train.epochs=2", "train.stop_at_epoch=1"),
        *("train.limit_train_batches=1", "train.limit_val_batches=1", "train.batch_size=4"),
        *("train.ema_decay=0.5", "train.loggers=[]", "train.warmup_epochs=0"),
        f"train.out={tmp_path_factory.mktemp('unfinished')}",
    ]
    folder = run_command("train", overrides)
    path = folder / "checkpoints" / "last.ckpt"
    return folder, torch.load(path, weights_only=True)


def places(table: dict, path: tuple = ()) -> Iterator[tuple]:
    """Yield the path of every entry that this format defines; of settings, the tables alone."""
    for key, value in table.items():
        here = (*path, key)
        yield here
        if isinstance(value, dict) and key not in ("state_dict", "state_dict_ema", "versions"):
            inside = here[0] == "config" or here[:2] == ("optimizer", "state")
            if not inside or len(here) < 2:
                yield from places(value, here)


def mutated(content: dict, path: tuple, change: Any) -> dict:
    """Return a copy in which the entry at `path` is changed, or deleted if `change` is `del`."""
    content = copy.deepcopy(content)
    table = content
    for key in path[:-1]:
        table = table[key]
    if change == "del":
        del table[path[-1]]
    else:
        table[path[-1]] = change
    return content


CHANGES = ("del", None, "x", HUGE, -7, float("nan"), [], {}, {"x": 1}, torch.zeros(2))
OPTIONAL = {"state_dict_ema", "checksum"}  # without them, an evaluation still knows what to do


def test_every_entry_is_checked(unfinished: tuple[Path, dict[str, Any]]) -> None:
    """In memory: no change of an entry is accepted, and no error is a traceback."""
    folder, content = unfinished
    checkpoint_schema.check(content, "c", resumes=True)
    count = 0
    for path in places(content):
        for change in CHANGES:
            if change == "del" and path[-1] in OPTIONAL:
                continue
            if path[0] == "config" and isinstance(change, dict):
                continue  # settings are merged with the schema of the command afterwards
            broken = mutated(content, path, change)
            if str(value_at(content, path)) == str(value_at(broken, path)):
                continue  # nothing changed
            print(path, change)  # shown if the test fails
            with pytest.raises(BadWeights) as hit:
                checkpoint_schema.check(broken, "c.ckpt", resumes=True)
            assert "\n" not in str(hit.value)
            assert len(str(hit.value)) < 400
            assert str(hit.value).startswith("c.ckpt ")
            count += 1
        added = mutated(content, (*path, "new"), 1) if is_table(content, path) else None
        is_free = path[0] in ("config", "versions", "metrics", "scaler") or "splits" in path
        if added is not None and not is_free:
            with pytest.raises(BadWeights, match=r"new"):
                checkpoint_schema.check(added, "c.ckpt", resumes=True)
    assert count > 200


def value_at(content: Any, path: tuple) -> Any:
    for key in path:
        content = content.get(key, "nothing")
    return content


def is_table(content: dict, path: tuple) -> bool:
    open_tables = ("state_dict", "state_dict_ema", "optimizer", "model")
    return isinstance(value_at(content, path), dict) and path[0] not in open_tables


@pytest.mark.parametrize(
    ("path", "change", "message"),
    [
        (("format",), "zoo.checkpoint/2", "was written by a newer version .*pip install -U"),
        (("format",), None, "format is None, and must be zoo.checkpoint/1"),
        (("progress",), "del", "progress is missing; use another checkpoint of the run"),
        (("progress", "step"), 3, "does not know its entry progress.step, which a newer version"),
        (("config",), 5, "config is 5, and must be a table"),
        (("optimizer",), "del", "optimizer is missing"),
        (("optimizer", "param_groups"), [], "param_groups has 0 groups"),
        (("optimizer", "state", 0), {}, "state has other entries for some parameters"),
        (("optimizer", "state", 0, "exp_avg"), torch.zeros(7), "exp_avg is a 7 tensor"),
        (("optimizer", "state", 999), {}, "optimizer.state has an invalid entry '999'"),
        (("scaler", "scale"), 2.0, "scaler.scale is unknown"),
        (("state_dict", "head.fc.bias"), torch.zeros(3), "other tensors than state_dict"),
        (("progress", "update"), 9, "is after 9 updates, .* the data has 1 batches per epoch"),
        (("progress", "world_size"), 2, "was trained with 2 processes"),
        (("config", "train", "lr"), "fast", "was written by another version"),
        (("config", "train", "speed"), 1, "was written by another version"),
    ],
)
def test_resuming_a_damaged_checkpoint_names_what_is_wrong(
    unfinished: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    path: tuple,
    change: Any,
    message: str,
) -> None:
    _, content = unfinished
    broken = mutated(content, path, change)
    del broken["checksum"]
    file = tmp_path / "checkpoints" / "last.ckpt"
    file.parent.mkdir()
    torch.save(broken, file)
    with pytest.raises(ZooError, match=message) as hit:
        resume_run(tmp_path)
    assert "\n" not in str(hit.value)
    assert {path.name for path in tmp_path.iterdir()} <= {"checkpoints", "train.log"} | {
        "config.yaml",
        "versions.yaml",
    }


def test_one_flipped_bit_is_found(unfinished: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, content = unfinished
    broken = copy.deepcopy(content)
    tensor = broken["optimizer"]["state"][3]["exp_avg"]
    tensor.view(torch.int32).view(-1)[0] ^= 1
    with pytest.raises(BadWeights, match="does not match its checksum"):
        checkpoint_schema.check(broken, "c")
    checkpoint.save({k: v for k, v in broken.items() if k != "checksum"}, tmp_path / "a.ckpt")
    again = torch.load(tmp_path / "a.ckpt", weights_only=True)
    checkpoint_schema.check(again, "c")
