"""The parts of the command line, which `zoo/cli.py` puts together.

`keys` lists the settings, `overrides` reads those that a user gave, `composition` merges them with
the files of `zoo/configs`, and `hydra_entry` handles Hydra's own flags. `help` and `completion`
explain and complete settings. `guard` ends every command with one line.
"""
