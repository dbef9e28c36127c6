"""`train.sweep` on the command line and from Python: combinations, real runs, messages."""

import json
from pathlib import Path

import pytest
import torch

import zoo
from zoo.cli import execute
from zoo.command_line import composition
from zoo.errors import BadInput
from zoo.sweeping import lease
from zoo.sweeping.cells import cells_of
from zoo.training import loop
from zoo.training.run_comparison import compare_runs

pytestmark = pytest.mark.usefixtures("no_sync")
SMALL = (
    *("model=simplenet_cifar_310k", "data.image_size=16", "data.num_workers=0"),
    *("train.batch_size=8", "train.limit_train_batches=2", "train.limit_val_batches=4"),
    *("train.epochs=2", "train.warmup_epochs=0", "train.loggers=[csv]", "train.progress=false"),
)
GRID = ("train.seed=0,1", "train.lr=1e-3,1e-2")


class Death(BaseException):
    """Ends a run where a process would have been killed."""


def sweep(folder: Path, *words: str) -> Path:
    return composition.run("train", [f"train.sweep={folder}", *words])


def tables(folder: Path) -> dict[str, bytes]:
    return {n: (folder / n).read_bytes() for n in ("cells.csv", "table.csv", "table.md")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a sweep of two learning rates and two seeds that nothing disturbed."""
    return sweep(tmp_path_factory.mktemp("whole"), *SMALL, *GRID)


def test_the_finished_runs_are_grouped_by_setting_and_can_be_compared(whole: Path) -> None:
    settings = sorted((whole / "runs").iterdir())
    assert [sorted(run.name for run in one.iterdir()) for one in settings] == [
        ["seed_0", "seed_1"],
        ["seed_0", "seed_1"],
    ]
    found = compare_runs(settings[0], settings[1], changed=["train.lr"])
    assert found.seeds == [0, 1]
    row = next(
        line.split(",")
        for line in (whole / "table.csv").read_text().splitlines()[1:]
        if not line.endswith(",,")
    )
    assert abs(float(row[-2])) == pytest.approx(abs(found.difference.mean), abs=1e-9)
    assert float(row[-1]) == pytest.approx(found.difference.half, abs=1e-9)
    log = (settings[0] / "seed_0/train.log").read_text()
    assert "evaluate with" not in log, "the folder of the turn is gone"


def test_a_run_that_died_after_an_epoch_is_continued_and_the_sweep_is_equal(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = loop.Loop._save
    deaths = (2, 1)  # after the first epoch; in the next process, after the last

    def dying_save(self: loop.Loop, is_best: bool = False) -> None:
        saved(self, is_best)
        left[0] -= 1
        if not left[0]:
            raise Death

    def die(turn: lease.Turn) -> None:
        turn._end.set()
        assert turn._lock is not None
        turn._lock.release()

    with monkeypatch.context() as patch:
        patch.setattr(loop.Loop, "_save", dying_save)
        patch.setattr(lease.Turn, "give_back", die)
        for death in deaths:
            left = [death]
            with pytest.raises(Death):
                sweep(tmp_path, *SMALL, *GRID)
    sweep(tmp_path)  # another worker joins without any setting
    assert tables(tmp_path) == tables(whole)
    for cell in cells_of(tmp_path):
        ours, theirs = (
            torch.load(root / "runs" / cell.setting / cell.name / "checkpoints/last.ckpt")
            for root in (tmp_path, whole)
        )
        assert ours["checksum"] == theirs["checksum"]
    assert "continuing" in (cells_of(tmp_path)[0].finished / "train.log").read_text()


def test_a_run_that_was_finished_but_not_published_is_only_published(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from zoo.sweeping import worker

    def die(*_: object) -> None:
        raise Death

    with monkeypatch.context() as patch:
        patch.setattr(worker, "_publish", die)
        with pytest.raises(Death):
            sweep(tmp_path, *SMALL, "train.lr=1e-3")
    monkeypatch.setattr(loop.Loop, "run", die)
    sweep(tmp_path)
    (ours,) = cells_of(tmp_path)
    theirs = (whole / "runs" / ours.setting / ours.name / "result.json").read_text()
    assert json.dumps(ours.result(), indent=1, sort_keys=True) == theirs


def test_more_seeds_can_be_added_from_another_checkout(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    monkeypatch.chdir(tmp_path / "a")
    sweep(Path("../shared"), *SMALL, "train.epochs=1", "train.limit_val_batches=1")
    monkeypatch.chdir(tmp_path / "b")
    capsys.readouterr()
    words = (*SMALL, "train.epochs=1", "train.limit_val_batches=1", "train.log_every=3")
    sweep(tmp_path / "shared", *words, "train.seed=range(2)")
    assert "2 cells, 1 of them new" in capsys.readouterr().out
    assert len(list((tmp_path / "shared/runs").glob("*/*/result.json"))) == 2
    assert not list((tmp_path / "a").iterdir())
    assert not list((tmp_path / "b").iterdir())


def combinations(monkeypatch: pytest.MonkeyPatch, *words: str) -> list:
    """Return the settings of the runs that a command line means."""
    from zoo.commands import train

    monkeypatch.setattr(train, "run_sweep", lambda folder, runs, of_machine: runs)
    return [settings for settings, _ in composition.run("train", ["train.sweep=out", *words])]


def test_the_grammar_is_that_of_hydra(monkeypatch: pytest.MonkeyPatch) -> None:
    found = combinations(
        monkeypatch,
        "model=glob(simplenet_cifar_*,exclude=*5m*)",
        "train.seed=range(1,3)",
        "train.optimizer=choice(sgd,adamw)",
        "train.freeze=[a,b]",
        "train.optimizer_args={eps:1e-7}",
    )
    assert len(found) == len({str(one) for one in found})
    assert {one.train.seed for one in found} == {1, 2}
    assert {one.train.optimizer for one in found} == {"sgd", "adamw"}
    assert all(one.train.freeze == ["a", "b"] for one in found)
    names = [n for n in zoo.list_models("simplenet_cifar_*") if "5m" not in n]
    assert sorted({one.model.name for one in found}) == names


def test_python_takes_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    from zoo.commands import train

    monkeypatch.setattr(train, "run_sweep", lambda folder, runs, of_machine: (folder, runs))
    folder, runs = zoo.train(
        ["simplenet_cifar_310k", "cct_2_3x2_32"],
        seed=range(2),
        sweep=Path("out put"),
        freeze=["stem*"],
        lr=(0.1, 0.2),
    )
    assert folder == "out put"
    assert len({(s.model.name, s.train.seed, s.train.lr) for s, _ in runs}) == 8
    assert all(s.train.freeze == ["stem*"] for s, _ in runs)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train.sweep={}/none"], "has no cells yet; give the settings"),
        (["train.sweep={}/a,{}/b"], "a sweep is in one folder"),
        (["train.sweep={}", "train.resume=runs/x"], "cannot be used with train.sweep"),
        (["train.sweep={}", "train.dry_run=true"], "train.dry_run=True cannot be used"),
        (["train.sweep={}", "train.out=elsewhere"], "train.out=elsewhere cannot be used"),
        (["train.sweep={}", "train.devices=2"], "CUDA_VISIBLE_DEVICES"),
        (["train.sweep={}", "train.lr=interval(0,1)"], "an interval has no list of values"),
        (["train.sweep={}", "train.lr=0.1,-1"], "train.lr=-1.0 must be greater than 0"),
        (["train.sweep={}", "train.seed=1,x"], "train.seed"),
        (["train.sweep={}", "model=emo_1m", "data.cache=true"], "data.cache=True has no effect"),
        (["train.sweep={}", "model=glob(nothing*)"], "no value fits"),
        (["train.sweep={}", "model=simplenet_cifar_310k,emo_99m"], "emo_99m"),
        (["train.sweep={}", "train.seed=range(20000)"], "too many for a sweep"),
        (["-m", "train.sweep={}", "train.seed=0,1"], "--multirun cannot be used with train.sweep"),
        (["train.sweep={}/file"], "is not a folder"),
        (["train.seed=0,1"], "need train.sweep=<folder> or the flag --multirun"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert execute(["train", *(word.replace("{}", str(tmp_path)) for word in words)]) == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_torchrun_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(BadInput, match="instead of torchrun"):
        sweep(tmp_path, *SMALL)


def test_a_cross_validation_trains_every_fold_and_has_a_wider_interval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = combinations(monkeypatch, "data.folds=3", "train.seed=0,1")
    assert [(one.train.seed, one.data.fold) for one in runs] == [
        (seed, fold) for seed in (0, 1) for fold in range(3)
    ]
    one = combinations(monkeypatch, "data.folds=3", "data.fold=1")
    assert [run.data.fold for run in one] == [1]


def test_workers_that_a_cluster_starts_together_train_alone(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm = {"JOB_ID": "7", "JOB_NAME": "study", "NTASKS": "4", "PROCID": "3", "LOCALID": "3"}
    slurm |= {"NODELIST": "host1", "NODEID": "0", "NTASKS_PER_NODE": "4", "STEP_NUM_TASKS": "4"}
    for key, value in slurm.items():
        monkeypatch.setenv(f"SLURM_{key}", value)
    sweep(tmp_path, *SMALL, "train.lr=1e-3")
    (cell,) = cells_of(tmp_path)
    assert cell.result() == json.loads(
        (whole / "runs" / cell.setting / cell.name / "result.json").read_text()
    )
