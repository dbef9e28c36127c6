"""Evaluate weights or an exported file: `python eval.py weights=<run folder or file>`.

Keys: `EvalRun` in zoo/settings.py.
"""

from zoo.cli import main

if __name__ == "__main__":
    main("eval")
