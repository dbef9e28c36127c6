"""What `zoo.measure` itself costs: per timed call, and inside the measured time.

    python benchmarks/measure_overhead.py

An empty call is timed 100 000 times. What the clock sees of it is what every latency contains
beyond the model; the rest is what the loop adds between two calls. Ends with 1 if a timed call
costs 20 microseconds or more.
"""

import sys
import time

import numpy as np

from zoo.environment import summary
from zoo.profiling.latency import MeasurementBudget, time_calls

LIMIT_US = 20.0


def main() -> int:
    """Print both costs in microseconds."""
    runs = 100_000
    begin = time.perf_counter()
    times = time_calls(lambda: None, time.perf_counter, MeasurementBudget(runs, 0.0, 60.0))
    whole = (time.perf_counter() - begin) / runs * 1e6
    print(summary())
    print(f"one timed call costs {whole:.2f} us, {np.median(times) * 1e6:.2f} us of it measured")
    return int(whole >= LIMIT_US)


if __name__ == "__main__":
    sys.exit(main())
