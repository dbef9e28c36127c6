"""An environment into which the wheel is installed, as a user would install it."""

import os
import re
import subprocess
import sys
import tarfile
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUILT = ("zoo", "pyproject.toml", "README.md", "LICENSE")


class Installed:
    """A Python whose site-packages has the wheel, and finds its dependencies in this one's."""

    def __init__(self, folder: Path):
        self.bin = folder / ("Scripts" if os.name == "nt" else "bin")
        self.python = self.bin / "python"
        self.environment = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("PYTHON", "COV_", "PYTEST"))
        } | {
            "OMP_NUM_THREADS": "1",
            "XDG_STATE_HOME": str(folder / "state"),
            "PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}",
        }

    def __call__(self, *command: str | Path, cwd: Path, code: int = 0) -> str:
        """Run a command and return what it printed; its exit code must be `code`."""
        done = subprocess.run(
            list(map(str, command)), cwd=cwd, env=self.environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
        assert done.returncode == code, f"{command}\n{done.stdout[-5000:]}"
        return done.stdout


@pytest.fixture(scope="session")
def distributions(tmp_path_factory) -> tuple[Path, Path]:
    """The sdist, and the wheel that is built from it; no network."""
    folder = tmp_path_factory.mktemp("built")
    source = folder / "source"
    source.mkdir()
    for name in BUILT:
        (source / name).symlink_to(ROOT / name)
    _build("build_sdist", source, folder)
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    _build("build_wheel", unpacked, folder)
    (wheel,) = folder.glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="session")
def installed(distributions, tmp_path_factory) -> Installed:
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=os.name != "nt")
    pip = [sys.executable, "-m", "pip", "--python", str(folder), "--disable-pip-version-check"]
    install = [*pip, "install", "--quiet", "--no-deps", "--no-index", str(distributions[1])]
    subprocess.run(install, check=True)
    (site,) = folder.glob("[Ll]ib/**/site-packages")
    dependencies = Path(pytest.__file__).parents[1]
    (site / "dependencies.pth").write_text(f"{dependencies}\n")
    # The console scripts of dependencies, such as torchrun, start the Python of their environment.
    script = folder / "bin" / "torchrun"
    if script.parent.is_dir():
        script.write_text(
            f"#!{folder / 'bin' / 'python'}\nfrom torch.distributed.run import main\nmain()\n"
        )
        script.chmod(0o755)
    return Installed(folder)


@pytest.fixture
def empty(tmp_path) -> Path:
    return tmp_path


def _build(hook: str, source: Path, out: Path) -> None:
    code = f"from setuptools import build_meta; build_meta.{hook}({str(out)!r})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=source, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, re.sub(r"\n+", "\n", done.stderr)[-3000:]
