"""Compare the latency of exported models of zoo and timm in ONNX Runtime.

    python benchmarks/onnx_speed.py [model ...]

The models of zoo are exported by `zoo.export`, which fuses them. Those of timm are exported by
`torch.onnx.export(dynamo=True)`. Both run with the same settings, and are called in turn. The exit
status is 1 if a model of zoo is slower.
"""

import argparse
import contextlib
import io
import sys
import tempfile
import warnings
from pathlib import Path

import timm
import torch

import zoo
from zoo import runtimes
from zoo.environment import summary, versions

MODELS = ("efficientformer_l1", "mobilenetv2_100")


def export_timm(name: str, file: Path, batch: int, image: int) -> None:
    """Export a model of timm as its users would."""
    model = timm.create_model(name).eval()
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model,
            (torch.zeros(max(2, batch), 3, image, image),),
            dynamo=True,
            input_names=["input"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )
        assert program is not None
        program.save(file, external_data=False)


def main() -> int:
    """Print the ratio of the latencies and its confidence interval for each model."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="*", default=MODELS, help="names of models in zoo and timm")
    parser.add_argument("--batch", type=int, default=1, help="images per call")
    parser.add_argument("--image", type=int, default=224, help="height and width in pixels")
    parser.add_argument("--threads", type=int, help="default: the setting of PyTorch")
    parser.add_argument("--pairs", type=int, default=300, help="pairs of calls")
    given = parser.parse_args()
    size = (given.batch, 3, given.image, given.image)
    print(f"{summary()}; {', '.join(f'{k} {v}' for k, v in versions().items())}")
    print(f"input {size}; A: timm, exported by PyTorch; B: zoo, fused and exported by zoo")
    slower = False
    with tempfile.TemporaryDirectory() as folder:
        for name in given.models:
            theirs = Path(folder) / f"{name}.onnx"
            export_timm(name, theirs, given.batch, given.image)
            model = zoo.create_model(name).eval()
            ours = zoo.export(model, "onnx", Path(folder) / name, input_size=(1, *size[1:])).path
            sides = (
                runtimes.load(file, "onnxruntime", threads=given.threads) for file in (theirs, ours)
            )
            result = zoo.compare(*sides, size, min_runs=given.pairs, max_time=120)
            slower |= result.verdict == "B is slower"
            print(f"{name}: {result}", flush=True)
    return int(slower)


if __name__ == "__main__":
    sys.exit(main())
