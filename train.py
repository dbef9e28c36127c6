"""Train a model: `python train.py model=efficientformer_l1`.

Keys: `TrainRun` in zoo/settings.py.
"""

from zoo.cli import main

if __name__ == "__main__":
    main("train")
