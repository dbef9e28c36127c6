"""Workers of a sweep: deaths at every step, take-overs, two workers at once, failures."""

import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from zoo.errors import BadInput
from zoo.sweeping import lease, worker
from zoo.sweeping.cells import cells_of
from zoo.sweeping.lease import Claims, last_turn, turn_file
from zoo.sweeping.worker import CellsFailed
from zoo.training.faults import MachineFault

from .fakes import cell, run, tables, train

STEPS = {"open", "os.rename", "os.mkdir", "os.link", "os.remove", "os.rmdir", "os.chmod"}
pytestmark = pytest.mark.usefixtures("no_sync")
fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def die_at(step: int, sweep: Path) -> int:
    """Start a worker that dies before its step in the folder; return its exit code, 0 if it ends.

    It dies like a process that is killed: nothing is cleaned up.
    """
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    left = step

    def count(event: str, arguments: tuple) -> None:
        nonlocal left
        if event in STEPS and str(arguments[0]).startswith(str(sweep)):
            left -= 1
            if not left:
                os._exit(9)

    code = 1
    try:
        sys.addaudithook(count)
        run(sweep)
        code = 0
    finally:
        os._exit(code)


@fork
def test_a_worker_that_dies_at_any_step_is_replaced_and_the_tables_are_equal(tmp_path):
    whole = tmp_path / "whole"
    cell(whole).add()
    run(whole)
    expected = tables(whole)
    step, continued = 1, 0
    while True:
        sweep = tmp_path / f"sweep{step}"
        one = cell(sweep)
        one.add()
        code = die_at(step, sweep)
        if code == 0:
            break
        assert code == 9
        had_checkpoint = (one.folder / "1/checkpoints/last.ckpt").exists()
        turn = turn_file(one.folder, 1)
        is_unknown = turn.exists() and not turn.read_bytes()  # who was it? wait for heartbeats
        assert run(sweep) == (60 if is_unknown else 0), step
        assert tables(sweep) == expected, step
        if had_checkpoint:  # rows after the checkpoint are for the training to drop
            continued += 1
            epochs = (one.finished / "metrics.csv").read_text().splitlines()
            assert [line.split(",")[0] for line in epochs].count("1") == 1, "it began anew"
        left = {path.suffix for path in one.folder.iterdir()}
        assert left <= {".json", ".turn", ".lock"}, f"step {step} leaves {left}"
        shutil.rmtree(sweep)
        step += 1
    assert step > 20, "the deaths were not counted"
    assert continued > 5, "no death was in the middle of a run"


@fork
def test_a_chain_of_deaths_in_a_take_over_loses_nothing(tmp_path):
    """Every worker dies a step later than the one before it, within the work of taking over."""
    whole, sweep = tmp_path / "whole", tmp_path / "sweep"
    for folder in (whole, sweep):
        cell(folder).add()
    run(whole)
    step = 8
    while die_at(step, sweep):
        step += 1
    assert tables(sweep) == tables(whole)
    assert last_turn(cell(sweep).folder) > 3


def test_two_workers_on_two_machines_train_every_cell_once(tmp_path):
    """Each looks at the folder while the other one trains, from inside its training."""
    sweep, other = tmp_path / "sweep", tmp_path / "other"
    for folder in (sweep, other):
        for seed in range(3):
            for lr in (0.1, 0.2):
                cell(folder, seed, lr).add()
    run(other)
    trained = []

    def second(one, turn, resumes):
        trained.append(("second", one.name, one.setting))
        return train(one, turn, resumes)

    def first(one, turn, resumes):
        trained.append(("first", one.name, one.setting))
        if len(trained) == 1:  # the second machine works until only this cell is left
            with pytest.raises(KeyboardInterrupt):
                run(sweep, second, claims=Claims(host="elsewhere"), pause=interrupt)
        return train(one, turn, resumes)

    def interrupt():
        raise KeyboardInterrupt

    run(sweep, first)
    assert len(trained) == len({one[1:] for one in trained}) == 6
    assert [who for who, *_ in trained].count("second") == 5
    assert tables(sweep) == tables(other)


def test_a_cell_of_another_machine_is_taken_over_when_its_heartbeat_stops(tmp_path):
    one = cell(tmp_path)
    one.add()
    theirs = Claims(host="elsewhere", beat=1000).claim(one.folder)
    assert theirs is not None
    now = [1e9]  # another clock
    ours = Claims(patience=60, clock=lambda: now[0])
    assert ours.claim(one.folder) is None
    now[0] += 59
    assert ours.claim(one.folder) is None
    theirs.beat()
    now[0] += 59
    assert ours.claim(one.folder) is None, "a heartbeat was not noticed"
    now[0] += 60
    turn = ours.claim(one.folder)
    assert turn is not None
    assert turn.number == 2
    theirs.beat()
    assert theirs.is_lost
    theirs.give_back()
    assert not turn_file(one.folder, 1).read_bytes().endswith(lease.GIVEN_BACK)
    turn.give_back()
    assert ours.claim(one.folder).number == 3  # at once


def test_a_worker_that_was_declared_dead_by_mistake_changes_nothing(tmp_path):
    whole, sweep = tmp_path / "whole", tmp_path / "sweep"
    for folder in (whole, sweep):
        cell(folder).add()
    run(whole)

    def suspended(one, turn, resumes):
        folder = turn.run_folder
        folder.mkdir()
        (folder / "metrics.csv").write_text("nonsense")
        run(sweep, claims=Claims(patience=0, host="elsewhere"))  # takes over and finishes
        assert cells_of(sweep)[0].is_finished()
        (folder / "checkpoints").mkdir(parents=True)  # its folder is gone
        return {"outcome": "finished", "metrics": {"val/top1": 0.99}}

    run(sweep, suspended)
    assert tables(sweep) == tables(whole)
    assert not (cell(sweep).folder / "1").exists()


def test_a_worker_whose_turn_is_lost_goes_on_with_another_cell(tmp_path):
    for seed in (0, 1):
        cell(tmp_path, seed).add()
    trained = []

    def interrupted(one, turn, resumes):
        trained.append(one.seed)
        if len(trained) == 1:
            other = Claims(patience=0, host="elsewhere").claim(one.folder)
            assert other is not None
            turn.beat()
            other.give_back()
            assert turn.is_lost
            raise SystemExit(1)  # so the training ends
        return train(one, turn, resumes)

    run(tmp_path, interrupted)
    assert trained == [0, 0, 1]


@pytest.mark.parametrize("error", [SystemExit(143), MachineFault("out of memory")])
def test_a_worker_that_is_stopped_gives_its_cell_back_at_once(tmp_path, error):
    cell(tmp_path).add()

    def stopped(one, turn, resumes):
        raise error

    with pytest.raises(type(error)):
        run(tmp_path, stopped)
    taken = Claims(host="elsewhere").claim(cell(tmp_path).folder)
    assert taken is not None
    taken.give_back()


def test_a_cell_that_fails_here_is_tried_once_and_left_to_others(tmp_path):
    for seed in (0, 1, 2):
        cell(tmp_path, seed).add()
    tried = []

    def failing(one, turn, resumes):
        tried.append(one.seed)
        if one.seed == 1:
            raise BadInput("photos does not exist")
        return train(one, turn, resumes)

    with pytest.raises(CellsFailed, match=r"1 of 3 cells .*seed_1: photos does not exist"):
        run(tmp_path, failing)
    assert tried == [0, 1, 2]
    assert "2 of 3 cells are finished" in (tmp_path / "table.md").read_text()
    run(tmp_path)  # another machine
    assert "preliminary" not in (tmp_path / "table.md").read_text()


def test_a_diverged_cell_is_not_repeated_and_its_setting_has_no_mean(tmp_path):
    for seed in (0, 1):
        for lr in (0.1, 9.0):
            cell(tmp_path, seed, lr).add()

    def diverging(one, turn, resumes):
        result = train(one, turn, resumes)
        bad = one.settings["train"]["lr"] == 9.0 and one.seed == 1
        return {"outcome": "diverged", "metrics": {}} if bad else result

    run(tmp_path, diverging)
    run(tmp_path, lambda *_: pytest.fail("trained again"))
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert "| m | 9.0 | 1 of 2 | 1 diverged |  |" in lines
    assert any("| 0.1 | 2 of 2 |" in line and line.endswith("| best |") for line in lines)


def test_the_table_is_complete_although_a_cell_ends_between_reading_and_writing(
    tmp_path, monkeypatch
):
    for seed in (0, 1):
        cell(tmp_path, seed).add()
    from zoo.sweeping import table

    page_of, calls = table.page_of, []

    def slow(cells):
        text = page_of(cells)
        calls.append(text)
        if len(calls) == 1:  # another worker finishes the last cell now
            run(tmp_path, claims=Claims(host="elsewhere"))
        return text

    monkeypatch.setattr(table, "page_of", slow)

    def stop(one, turn, resumes):
        if one.seed == 1:
            raise BadInput("not here")
        return train(one, turn, resumes)

    run(tmp_path, stop)
    assert "preliminary" in calls[0]
    assert "preliminary" not in (tmp_path / "table.md").read_text()


def test_a_lock_that_no_file_system_supports_leaves_the_heartbeats(tmp_path, monkeypatch):
    cell(tmp_path).add()
    monkeypatch.setattr(lease.FileLock, "acquire", lambda *_, **__: (_ for _ in ()).throw(OSError))
    turn = Claims(beat=1000).claim(cell(tmp_path).folder)
    assert turn is not None
    now = [0.0]
    other = Claims(patience=60, clock=lambda: now[0])
    assert other.claim(cell(tmp_path).folder) is None
    now[0] = 60
    assert other.claim(cell(tmp_path).folder) is not None
    turn.give_back()


def test_a_turn_that_was_not_written_yet_is_left_alone(tmp_path):
    cell(tmp_path).add()
    turn_file(cell(tmp_path).folder, 1).touch()
    assert Claims().claim(cell(tmp_path).folder) is None


def test_heartbeats_are_written_by_a_thread(tmp_path):
    import time

    turn_folder = cell(tmp_path).folder
    turn_folder.mkdir(parents=True)
    turn = Claims(beat=0.001).claim(turn_folder)
    assert turn is not None
    end = time.monotonic() + 60
    while b"\n..." not in turn_file(turn_folder, 1).read_bytes() and time.monotonic() < end:
        time.sleep(0.001)
    turn.give_back()
    assert b"\n..." in turn_file(turn_folder, 1).read_bytes()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"settings": 1}'])
def test_a_damaged_cell_is_one_line(tmp_path, content):
    cell(tmp_path).add()
    (cell(tmp_path).folder / "cell.json").write_text(content)
    with pytest.raises(BadInput, match=r"cell\.json is damaged"):
        run(tmp_path)


def test_an_edited_cell_is_refused(tmp_path):
    cell(tmp_path).add()
    path = cell(tmp_path).folder / "cell.json"
    path.write_text(path.read_text().replace("0.1", "0.7"))
    with pytest.raises(BadInput, match="does not describe the run of its folder"):
        run(tmp_path)


def test_a_worker_says_that_it_waits_only_once(tmp_path):
    cell(tmp_path).add()
    turn = Claims(host="elsewhere", beat=1000).claim(cell(tmp_path).folder)
    assert turn is not None
    lines, pauses = [], []

    def pause():
        pauses.append(1)
        if len(pauses) == 3:
            turn.give_back()

    worker.work(tmp_path, train, claims=Claims(), pause=pause, report=lines.append)
    assert lines.count("waiting for 1 cells that other workers train") == 1


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="needs SIGUSR1")
def test_a_signal_between_two_cells_ends_the_worker_and_sigusr1_requeues_its_job(
    tmp_path, monkeypatch
):
    for seed in (0, 1):
        cell(tmp_path, seed).add()
    lines = []
    monkeypatch.setattr(worker.slurm, "requeue", lambda: "requeued")

    def signalled(one, turn, resumes):
        result = train(one, turn, resumes)
        os.kill(os.getpid(), signal.SIGUSR1)
        return result

    with pytest.raises(SystemExit) as end:
        run(tmp_path, signalled, report=lines.append)
    assert end.value.code == 138
    assert lines[-1] == "requeued"
    assert [one.is_finished() for one in cells_of(tmp_path)] == [True, False]


def test_the_state_of_a_sweep_is_printed(tmp_path, capsys):
    from zoo.cli import execute

    for seed in range(4):
        cell(tmp_path, seed).add()

    def first_only(one, turn, resumes):
        if one.seed:
            raise KeyboardInterrupt
        return train(one, turn, resumes)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, first_only)
    turn = Claims(host="elsewhere 12", beat=1000).claim(cell(tmp_path, 3).folder)
    assert turn is not None
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.[cm]*")}
    assert execute(["sweep", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "seed_3: taken by elsewhere, turn 1" in printed
    assert "seed_2: left" in printed
    assert "1 finished, 2 left, 1 taken" in printed
    assert "| m | 1 of 4 |" in printed
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.[cm]*")} == before
    turn.give_back()
    assert execute(["sweep", str(tmp_path / "none")]) == 1
    assert "has no sweep; give the folder of train.sweep" in capsys.readouterr().err
