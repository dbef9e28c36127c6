"""Count and time models: `python benchmark.py model=efficientformer_l1`, or `models=[a,b]`.

Keys: `BenchmarkRun` in zoo/settings.py.
"""

from zoo.cli import main

if __name__ == "__main__":
    main("benchmark")
