"""Count and time models: `python benchmark.py model=efficientformer_l1`, or `models=[a,b]`."""

from omegaconf import DictConfig

from zoo.config import entry_point


@entry_point("benchmark")
def main(cfg: DictConfig) -> None:
    """Measure as `cfg` says. The keys: zoo/config.py, BenchmarkRun."""
    from zoo.profiling.sweep import run

    run(cfg)


if __name__ == "__main__":
    main()
