"""Train a model: `python train.py model=efficientformer_l1`. The keys: zoo/config.py, TrainRun."""

from omegaconf import DictConfig

from zoo.config import entry_point


@entry_point("train")
def main(cfg: DictConfig) -> None:
    """Train as `cfg` says."""
    from zoo.training.fit import train

    train(cfg)


if __name__ == "__main__":
    main()
