"""Export a model: `python export.py model=efficientformer_l1 weights=runs/... format=onnx`."""

from omegaconf import DictConfig

from zoo.config import entry_point


@entry_point("export")
def main(cfg: DictConfig) -> None:
    """Export as `cfg` says. The keys: zoo/config.py, ExportRun."""
    from zoo.quantization.command import run

    run(cfg)


if __name__ == "__main__":
    main()
