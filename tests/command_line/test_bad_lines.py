"""Command lines that cannot work: exit code 1, one line that says why, and no log file.

Each runs in process through the entry of `zoo`. `{}` is an empty folder.
"""

import pytest

from zoo.cli import execute

QUICK = [
    ("tran", "unknown command 'tran'; did you mean 'train'? Commands: "),
    ("model=emo_1m", "unknown command 'model=emo_1m'"),
    ("help tran", "unknown command 'tran'"),
    ("completion", "give one shell: zoo completion bash|zsh|fish"),
    ("completion bahs", "unknown shell 'bahs'; did you mean 'bash'?"),
    ("list --lnog", "unrecognized arguments: --lnog; did you mean --long? see zoo list --help"),
    ("list nosuchmodel*", ""),
    ("info", "the following arguments are required: model; see zoo info --help"),
    ("info emo_1n", "unknown model 'emo_1n'; did you mean 'emo_1m'?"),
    ("count emo_1m --depth x", "argument --depth: invalid int value: 'x'; see zoo count --help"),
    ("predict", "the following arguments are required"),
    ("report {}/none", ""),
    ("compare {}/a {}/b", ""),
    ("train --epochs 3", "unrecognized arguments: --epochs"),
    ("train -m --cfg job", "only one of --run, --multirun, --cfg and --info can be given"),
    ("train --cfg", "argument --cfg/-c: expected one argument; see zoo train --help"),
    ("train --cfg x", "argument --cfg/-c: invalid choice: 'x'"),
    ("train --info x model=emo_1m", "argument --info/-i: invalid choice: 'x'"),
    ("train --resolve", "--resolve has no effect without --cfg"),
    ("train --config-dir {}/none", "--config-dir {}/none is not a folder"),
    ("train --config-name nothing", ""),
    ("train --experimental-rerun x.pickle", "unrecognized arguments: --experimental-rerun"),
    ("train -m train.epochs=1,x", "train.epochs: '1,x' is not a whole number"),
    ("train -m train.lr=range(1,2", "train.lr=range(1,2 is not in Hydra's grammar; quote it"),
    ("train hydra/launcher=nothing", ""),
    ("train hydra.nothing=1", ""),
    ("eval weights={}/epoch=3-step=100.ckpt", ""),
    ("eval artefact={}/none", ""),
    ("eval weights={} artefact={}", ""),
    ("export weights={}/none", ""),
    ("export format=onx", "unknown format 'onx'; did you mean 'onnx'?"),
    ("export format=[onnx,3]", ""),
    ("export export.batch=x", "export.batch=x must be null, dynamic or at least 1"),
    ("benchmark models=[nosuch*]", ""),
    ("benchmark profile.runtimes=[egaer]", ""),
    ("benchmark model=emo_1m profile.threads=1000000", "threads=1000000 is too many for"),
    ("train train.devices=1000000", "train.devices=1000000 starts as many processes"),
    ("train train.seed=4294967296", "train.seed=4294967296 must be below 2**32"),
    ("train train.out={}/" + "x" * 300, ""),
    ("train train.precision=fp8", ""),
    ("train train.epochs=99999999999999999999999", ""),
    ("train train.resume={}", ""),
    ("eval weights={} device=meta", ""),
]


@pytest.mark.parametrize(("line", "message"), QUICK, ids=[line[:60] for line, _ in QUICK])
def test_bad_lines(line, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    folder = tmp_path / "empty"
    folder.mkdir()
    words = [word.format(folder) for word in line.split()]
    monkeypatch.setattr("sys.argv", ["zoo", *words])
    assert execute(words) == 1
    printed = capsys.readouterr().err.splitlines()
    errors = [line for line in printed if not line.startswith("[00:")]
    assert "Traceback" not in "".join(errors)
    assert errors[-1].startswith(f"error: {message.replace('{}', str(folder))}"), errors
    assert len(errors) == 1, errors
    assert not (tmp_path / "state").exists(), errors
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty"]


def test_a_job_that_fails_does_not_end_the_others(tmp_path, monkeypatch, capsys):
    from zoo.command_line import composition
    from zoo.errors import BadInput

    ran = []

    def start(command, settings, explicit):
        ran.append(settings.train.lr)
        if settings.train.lr == 1:
            raise BadInput("too high")
        return 0.5

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(composition, "start", start)
    words = ["train", "train.lr=0.5,1,0.25", "--multirun", "train.out=a=b"]
    monkeypatch.setattr("sys.argv", ["zoo", *words])
    assert execute(words) == 1
    assert ran == [0.5, 1, 0.25]
    printed = capsys.readouterr().err.splitlines()
    assert printed[0] == "error: train.lr=1 train.out='a=b': too high"
    assert printed[-1] == "error: 1 jobs failed: train.lr=1 train.out='a=b'"
