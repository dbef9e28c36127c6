"""What importing the package costs over importing timm, in fresh processes one after another.

    python benchmarks/import_time.py [runs]

Prints the best of the runs (seconds) of `import timm`, of `import zoo` and of zoo with everything
public touched, and what the last costs beyond timm.
"""

import subprocess
import sys
import time

CASES = {
    "nothing": "pass",
    "import timm": "import timm",
    "import zoo": "import zoo",
    "everything public": "import zoo; [getattr(zoo, name) for name in zoo.__all__]",
}


def seconds(code: str) -> float:
    """Return the wall time of a Python process that runs `code`."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - start


def main() -> None:
    """Time the cases in turns, so that a busy moment hits all of them."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    best = dict.fromkeys(CASES, float("inf"))
    for _ in range(runs):
        for name, code in CASES.items():
            best[name] = min(best[name], seconds(code))
    for name, time_taken in best.items():
        print(f"{name:<20}{time_taken:8.3f} s")
    beyond = best["everything public"] - best["import timm"]
    ratio = best["everything public"] / best["import timm"]
    print(f"{'beyond timm':<20}{beyond:8.3f} s   ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
