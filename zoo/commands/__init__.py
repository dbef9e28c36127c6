"""One module for each command.

`train`, `eval`, `benchmark` and `export` have a function `run(settings, explicit)`: `settings` is
the command's dataclass from `zoo.settings`, `explicit` has the keys that the user set. `resolve`
merges both with the settings saved in a checkpoint or a manifest. The packages below receive plain
values. The commands that need no configuration files have `HELP`, `add_arguments(parser)` and
`run(args)`; importing them must not import torch.
"""
