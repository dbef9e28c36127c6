"""Shell completion: commands, settings, options and names of models.

`zoo completion bash` prints a script for the shell. The script asks `zoo completion words` for the
words that can follow. Neither PyTorch nor Hydra is imported.
"""

import argparse
from collections.abc import Sequence

from zoo.errors import BadInput, unknown_value
from zoo.settings import RUNS

_BASH = """\
_zoo() {
    local line="${COMP_LINE:0:COMP_POINT}" word part
    word="${line##* }"
    COMPREPLY=()
    while IFS= read -r part; do
        # bash splits words at = and :, so only the part behind the last one is replaced
        case "$word" in *[=:]*) part="${part#"${word%[=:]*}"[=:]}";; esac
        COMPREPLY+=("$part")
    done < <(zoo completion words -- ${line#* } ${word:+} 2>/dev/null)
    case "${COMPREPLY[0]-}" in *=|*.) compopt -o nospace;; esac
}
complete -o default -F _zoo zoo
"""

_ZSH = """\
#compdef zoo
_zoo() {
    local -a found
    found=("${(@f)$(zoo completion words -- "${words[@]:1:$((CURRENT-1))}" 2>/dev/null)}")
    if [[ -n "${found[1]}" ]]; then compadd -S '' -- "${found[@]}"; else _files; fi
}
compdef _zoo zoo
"""

_FISH = """\
complete -c zoo -a '(zoo completion words -- (commandline -opc)[2..] (commandline -ct) 2>/dev/null)'
"""

SHELLS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}
_INSTALLING = {
    "bash": "bash: add to ~/.bashrc:  source <(zoo completion bash)",
    "zsh": "zsh: add to ~/.zshrc, after compinit:  source <(zoo completion zsh)",
    "fish": "fish: zoo completion fish > ~/.config/fish/completions/zoo.fish",
}


def run(arguments: Sequence[str], commands: dict[str, str]) -> None:
    """Run `zoo completion`: print the script of a shell, or the words that can follow.

    Args:
        arguments: The name of a shell, or `words --` and the words typed so far.
        commands: The commands and what they do.

    Raises:
        BadInput: The shell is unknown.
    """
    if list(arguments[:2]) == ["words", "--"]:
        print("\n".join(candidates(list(arguments[2:]), commands)))
        return
    if list(arguments) in (["-h"], ["--help"]):
        print(f"usage: zoo completion {'|'.join(SHELLS)}\n")
        print("\n".join(_INSTALLING.values()))
        return
    if len(arguments) != 1:
        raise BadInput(f"give one shell: zoo completion {'|'.join(SHELLS)}")
    if arguments[0] not in SHELLS:
        raise BadInput(unknown_value("shell", arguments[0], SHELLS))
    print(SHELLS[arguments[0]], end="")


def candidates(words: list[str], commands: Sequence[str] | dict[str, str]) -> list[str]:
    """Return the words that can replace the last of the words typed so far, after `zoo`."""
    *before, last = words or [""]
    if not before:
        return _matching(last, commands)
    command = before[0]
    if command in RUNS:
        return _settings(command, last)
    if command == "completion":
        return _matching(last, SHELLS)
    if command not in commands:
        return []
    if last.startswith("-"):
        return _matching(last, _options(command))
    return _matching(last, _models()) if command in ("list", "info", "count", "weights") else []


def _settings(command: str, last: str) -> list[str]:
    from zoo.command_line.keys import GROUPS, keys, options

    key, equals, _ = last.partition("=")
    if not equals:
        return _matching(last, [f"{name}=" for name in (*keys(command), "experiment")])
    if key in GROUPS:
        values = options(key)
    elif key in ("model.name", "model.encoder"):
        values = _models()
    elif keys(command).get(key) is bool:
        values = ["true", "false"]
    else:
        return []
    return _matching(last, [f"{key}={value}" for value in values])


def _options(command: str) -> list[str]:
    import importlib

    parser = argparse.ArgumentParser()
    importlib.import_module(f"zoo.commands.{command}").add_arguments(parser)
    return [option for action in parser._actions for option in action.option_strings]


def _models() -> list[str]:
    from zoo import registry

    return registry.list_models()


def _matching(start: str, names: Sequence[str] | dict[str, str]) -> list[str]:
    return [name for name in names if name.startswith(start)]
