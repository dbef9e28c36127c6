"""One module for each command: `run(settings, explicit)` resolves the settings and does the work.

`settings` is the command's dataclass from `zoo.settings`; `explicit` has the keys that the user
set. `resolve` merges them with what a checkpoint or a manifest says, once; everything below a
command receives plain values.
"""
