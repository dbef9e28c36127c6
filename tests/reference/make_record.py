"""Make a record of a public model: `python tests/reference/make_record.py --help`.

The model is built by code that is not ours, in its own checkout, filled with weights drawn from the
names of its parameters and run in float64. What it computes goes into `records/<name>.json`; the
tests then ask ours for the same, from the same weights.
"""

import argparse
import functools
import importlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))  # records.py, support.py

from records import against_noise, draw, public_state  # noqa: E402
from support import tensors  # noqa: E402

RECORDS = Path(__file__).parent / "records"


def digest(tensor: Tensor) -> dict[str, Any]:
    """Return what a record keeps of an output."""
    tensor = tensor.detach()
    return {
        "shape": list(tensor.shape),
        "numel": tensor.numel(),
        "mean": tensor.mean().item(),
        "std": tensor.std(correction=0).item(),
        "absmax": tensor.abs().max().item(),
        "probe": against_noise(0, tensor).item(),
        "first": [round(value, 7) for value in tensor.flatten()[:16].tolist()],
    }


def record_of(public: nn.Module, size: list[int]) -> dict[str, Any]:
    """Fill a public model by the rule of the records, run it, and return what it computes.

    Args:
        public: The model; its weights are replaced.
        size: Shape of the input, two images or more.
    """
    public = public.double().eval()
    state = public.state_dict()
    rows = [[key, list(t.shape), str(t.dtype).removeprefix("torch.")] for key, t in state.items()]
    public.load_state_dict(public_state({"state": rows}), strict=False)  # tables stay its own
    outputs = tensors(public(torch.from_numpy(draw("input", size))))
    loss = sum((against_noise(1, out) for out in outputs), torch.zeros(()))
    loss.backward()
    named = dict(public.named_parameters())
    norms = {key: p.grad.norm().item() for key, p in named.items() if p.grad is not None}
    return {
        "input": list(size),
        "dtype": "float64",
        "params": sum(p.numel() for p in named.values()),
        "outputs": [digest(out) for out in outputs],
        "contrast": digest(outputs[0][0] - outputs[0][1]),
        "state": rows,
        "loss": loss.item(),
        "grad_norm": norms,
        "dead": [key for key, p in named.items() if p.requires_grad and p.grad is None],
    }


def main(arguments: list[str] | None = None) -> None:
    """Write one record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("public", help="what builds the public model: module:function")
    parser.add_argument("model", help="the name of ours")
    parser.add_argument("--name", help="of the record; by default that of the model")
    parser.add_argument("--kwargs", type=json.loads, default={}, help="of zoo.create_model, JSON")
    parser.add_argument("--public-kwargs", type=json.loads, default={}, help="of the function")
    parser.add_argument("--input", type=int, nargs="+", default=[2, 3, 224, 224])
    parser.add_argument("--path", default=".", help="the checkout of the public code")
    for what in ("repo", "commit", "licence"):
        parser.add_argument(f"--{what}", required=True, help="of the public code")
    parser.add_argument("--note", default="", help="what was changed to make it run")
    args = parser.parse_args(arguments)
    sys.path.insert(0, args.path)
    module, _, function = args.public.partition(":")
    build = functools.reduce(getattr, function.split("."), importlib.import_module(module))
    name = args.name or args.model
    record = {
        "name": name,
        "model": args.model,
        "kwargs": args.kwargs,
        "source": {
            "repo": args.repo,
            "commit": args.commit,
            "license": args.licence,
            "cls": args.public,
            "kwargs": args.public_kwargs,
        },
        "note": args.note,
        **record_of(build(**args.public_kwargs), args.input),  # type: ignore[operator]
    }
    file = RECORDS / f"{name}.json"
    file.write_text(json.dumps(record, separators=(",", ":")), encoding="utf-8")
    print(f"wrote {file}")


if __name__ == "__main__":
    main()
