"""Compare `zoo pick` with measuring every candidate: accuracy lost, and share of the time.

    python benchmarks/pick.py --limit 60 --ms 5 10 20 --out runs/pick_benchmark

measures N candidates in the same way, then lets the search run on their recorded times and counts
the seconds that the candidates it chose took. So both see the same machine at the same time, and
several budgets cost one measurement. Interrupted, it goes on with the same --out.
"""

import argparse
import contextlib
import json
import time
from pathlib import Path

import numpy as np

from zoo.picking.candidates import candidates
from zoo.picking.predict import Predictor
from zoo.picking.search import ROUNDS, Search, measure
from zoo.picking.timer import MachineTimer, limits
from zoo.settings import PickConfig


class Recorded:
    """Replays recorded times; adds up the seconds that candidates took."""

    def __init__(self, rows):
        self.rows, self.seconds = rows, 0.0

    @contextlib.contextmanager
    def open(self, candidate):
        row = self.rows[str(candidate)]
        times, used = np.asarray(row["times"]), [0]
        self.seconds += row["opening_s"]

        def calls(count):
            part = times[used[0] : used[0] + count]
            used[0] += count
            self.seconds += float(part.sum()) / 1e3
            return part

        yield calls


def spread(found, count):
    """Return `count` candidates that cover the range of MACs evenly."""
    ordered = sorted(found, key=lambda c: c.macs)
    places = np.unique(np.linspace(0, len(ordered) - 1, min(count, len(ordered))).round())
    return [ordered[int(place)] for place in places]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=int, default=60, help="number of candidates")
    parser.add_argument("--ms", type=float, nargs="+", default=[5, 10, 20], help="budgets")
    parser.add_argument("--runtime", default="onnxruntime")
    parser.add_argument("--size", type=int, nargs="*", default=[])
    parser.add_argument("--out", default="runs/pick_benchmark")
    options = parser.parse_args()
    found = candidates(PickConfig(ms=1.0, runtime=[options.runtime], size=options.size))
    found = spread(found, options.limit)
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    file = out / "times.jsonl"
    rows = {}
    if file.exists():
        rows = {row["candidate"]: row for row in map(json.loads, file.read_text().splitlines())}
    timer = MachineTimer(1)
    for number, candidate in enumerate(found, start=1):
        if str(candidate) in rows:
            continue
        begin = time.perf_counter()
        with timer.open(candidate) as calls:
            opening = time.perf_counter() - begin
            times = calls(ROUNDS[-1])
        row = {"candidate": str(candidate), "opening_s": opening, "times": times.tolist()}
        rows[str(candidate)] = row
        with file.open("a") as opened:
            opened.write(json.dumps(row) + "\n")
        print(f"{number}/{len(found)} {candidate}: {np.median(times):.2f} ms", flush=True)
    roofline = limits(1)
    median = {c: float(np.median(rows[str(c)]["times"])) for c in found}
    everything = Recorded(rows)
    for candidate in found:
        with everything.open(candidate) as calls:
            measure(calls, float("inf"))
    print(f"{len(found)} candidates, one by one: {everything.seconds:.0f} s")
    for budget in options.ms:
        best = max((c.top1 for c in found if median[c] <= budget), default=None)
        replay = Recorded(rows)
        search = Search(Predictor(found, roofline), replay, budget)
        while promising := search.promising():
            search.step(promising[0])
        final = search.final()
        if best is None or not final:
            print(f"{budget:g} ms: best {best}, picked {final}")
            continue
        (winner,) = final
        print(
            f"{budget:g} ms: {winner.candidate.model}, lost top-1 "
            f"{best - winner.candidate.top1:.2f}, measured {len(search.measured)}, "
            f"time {replay.seconds / everything.seconds:.0%}"
        )


if __name__ == "__main__":
    main()
