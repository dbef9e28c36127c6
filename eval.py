"""Evaluate: `python eval.py weights=<run folder or file>`, or `artefact=<file or its folder>`.

The keys: zoo/config.py, EvalRun.
"""

from omegaconf import DictConfig

from zoo.config import entry_point


@entry_point("eval")
def main(cfg: DictConfig) -> None:
    """Evaluate as `cfg` says."""
    from zoo.training.evaluate import evaluate

    evaluate(cfg)


if __name__ == "__main__":
    main()
