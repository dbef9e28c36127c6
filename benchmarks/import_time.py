"""Measure the time to import zoo, compared with importing timm.

    python benchmarks/import_time.py [runs]

Each import runs in a new process. The script prints the shortest times of `import timm`, of
`import zoo`, and of `import zoo` followed by access to every public name. It also prints how much
longer the last of these takes than timm.
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
    """Return the seconds that a new Python process takes to run `code`."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - start


def main() -> None:
    """Time all cases in turn, so that load on the machine affects each of them."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    best = dict.fromkeys(CASES, float("inf"))
    for _ in range(runs):
        for name, code in CASES.items():
            best[name] = min(best[name], seconds(code))
    for name, time_taken in best.items():
        print(f"{name:<20}{time_taken:8.3f} s")
    beyond = best["everything public"] - best["import timm"]
    ratio = best["everything public"] / best["import timm"]
    print(f"{'more than timm':<20}{beyond:8.3f} s   ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
