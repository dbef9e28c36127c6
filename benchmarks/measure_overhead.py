"""Measure the overhead of `zoo.measure` per call.

    python benchmarks/measure_overhead.py

An empty function is timed 100 000 times. Its measured latency is the overhead that every latency
includes; the rest of the time passes between the calls. The exit status is 1 if a call has 20
microseconds or more of overhead in total.
"""

import sys
import time

import numpy as np

from zoo.environment import summary
from zoo.profiling.timing import MeasurementBudget, time_calls

LIMIT_US = 20.0


def main() -> int:
    """Print the overhead in microseconds."""
    runs = 100_000
    begin = time.perf_counter()
    times = time_calls(lambda: None, time.perf_counter, MeasurementBudget(runs, 0.0, 60.0))
    total = (time.perf_counter() - begin) / runs * 1e6
    print(summary())
    print(
        f"overhead per call: {total:.2f} us, of which {np.median(times) * 1e6:.2f} us are measured"
    )
    return int(total >= LIMIT_US)


if __name__ == "__main__":
    sys.exit(main())
