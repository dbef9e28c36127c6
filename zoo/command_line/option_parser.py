"""A parser of options whose mistakes are errors of one line."""

import argparse
import difflib
from typing import NoReturn

from zoo.errors import BadInput


class OneLineParser(argparse.ArgumentParser):
    """Raises `BadInput` instead of printing the usage and exiting."""

    def error(self, message: str) -> NoReturn:
        options = [option for action in self._actions for option in action.option_strings]
        unknown = message.partition("unrecognized arguments: ")[2].split()
        near = difflib.get_close_matches(unknown[0], options, n=1) if unknown else []
        hint = f"; did you mean {near[0]}?" if near else ";"
        raise BadInput(f"{message}{hint} see {self.prog} --help")
