"""Commands with Hydra's own flags and settings, such as --multirun and hydra.searchpath.

Without them, a command does not need Hydra's entry (`zoo.cli`).
"""

import os
import sys
from typing import Any

from zoo.command_line import composition, guard, overrides, sweeps
from zoo.command_line.keys import CONFIGS
from zoo.command_line.option_parser import OneLineParser
from zoo.errors import BadInput, ZooError
from zoo.quoting import program

INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")


def run(command: str, words: list[str]) -> None:
    """Run a command through Hydra's entry.

    In a multirun, a job that fails is reported at once, and the other jobs still run.

    Args:
        command: A key of `zoo.settings.RUNS`.
        words: Flags and settings in any order.

    Raises:
        ZooError: A flag or a setting is invalid, or a job failed.
    """
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException
    from hydra.types import RunMode
    from omegaconf.errors import OmegaConfBaseException

    if sys.version_info >= (3, 14):
        raise BadInput("Hydra's flags do not work on Python 3.14; use 3.11 to 3.13")
    flags, settings, is_sweep = _separate(command, words)
    if command == "train" and sweeps.is_sweep(settings):
        composition.run("train", [*_search_path(flags), *settings])
        return
    checked = overrides.read(command, settings, sweep=is_sweep)
    composition.register()
    before, full_error = list(sys.argv), os.environ.get("HYDRA_FULL_ERROR")
    prefix = before[: len(before) - len(words)] or before[:1]
    failed: list[str] = []

    def task(cfg: Any) -> Any:
        given = list(HydraConfig.get().overrides.task)
        # Processes that a job starts for itself repeat the job, not the multirun.
        sys.argv = [*prefix, *given]
        try:
            result = composition.start(command, *composition.plain(command, cfg, given))
        except Exception as error:
            if HydraConfig.get().mode is RunMode.MULTIRUN:
                failed.append(" ".join(given))
                print(f"error: {failed[-1]}: {guard.describe(error)}", file=sys.stderr)
            raise
        return getattr(result, "score", result)

    sys.argv, os.environ["HYDRA_FULL_ERROR"] = [before[0], *flags, *checked], "1"
    try:
        hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=command)(task)()
    except (HydraException, OmegaConfBaseException) as error:
        raise BadInput(composition.one_line(error)) from error
    except Exception as error:
        if not failed:
            raise
        raise ZooError(f"{len(failed)} jobs failed: {'; '.join(failed)}") from error
    finally:
        sys.argv = before
        os.environ.pop("HYDRA_FULL_ERROR")
        if full_error is not None:
            os.environ["HYDRA_FULL_ERROR"] = full_error


def _separate(command: str, words: list[str]) -> tuple[list[str], list[str], bool]:
    """Return the flags for Hydra, the settings, and whether this is a multirun."""
    parser = _parser(command)
    args = parser.parse_intermixed_args(words)
    modes = [args.run, args.multirun, args.cfg is not None, args.info is not None]
    if sum(modes) > 1:
        raise BadInput("only one of --run, --multirun, --cfg and --info can be given")
    if args.resolve and args.cfg is None:
        raise BadInput("--resolve has no effect without --cfg")
    if args.config_dir is not None and not os.path.isdir(args.config_dir):
        raise BadInput(f"--config-dir {args.config_dir} is not a folder")
    flags = [
        flag
        for name, value in vars(args).items()
        if name != "settings" and value not in (None, False)
        for flag in (f"--{name.replace('_', '-')}", *([] if value is True else [value]))
    ]
    return flags, args.settings, args.multirun


def _search_path(flags: list[str]) -> list[str]:
    """Return the settings that say the same as the flags, for a command with `train.sweep`.

    Raises:
        BadInput: A flag has no effect on a sweep.
    """
    if flags[:1] == ["--config-dir"] and len(flags) == 2:
        return [f"hydra.searchpath=[registry://models,'file://{os.path.abspath(flags[1])}']"]
    if flags:
        raise BadInput(
            f"{flags[0]} cannot be used with train.sweep, which trains every combination itself;"
            " leave one of them out"
        )
    return []


def _parser(command: str) -> OneLineParser:
    parser = OneLineParser(prog=program(command), add_help=False, allow_abbrev=False)
    parser.add_argument("--multirun", "-m", action="store_true")
    parser.add_argument("--run", "-r", action="store_true")
    parser.add_argument("--cfg", "-c", choices=("job", "hydra", "all"))
    parser.add_argument("--resolve", action="store_true")
    parser.add_argument("--package", "-p")
    parser.add_argument("--info", "-i", nargs="?", const="all", choices=INFO)
    parser.add_argument("--config-dir", "-cd")
    parser.add_argument("--config-name", "-cn")
    parser.add_argument("--hydra-help", action="store_true")
    parser.add_argument("settings", nargs="*")
    return parser
