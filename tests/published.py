"""Checkpoints as they are published, without the files: names and shapes from the records."""

import json
from pathlib import Path

import torch
from torch import Tensor

RECORDS = Path(__file__).parent / "reference" / "records"


def public_state(record: str, keep=lambda key: True) -> dict[str, Tensor]:
    """Return random tensors under the public names of a record; variances are positive."""
    generator = torch.Generator().manual_seed(0)
    rows = json.loads((RECORDS / f"{record}.json").read_text())["state"]
    state = {
        key: torch.randn(shape, generator=generator)
        if dtype.startswith("float")
        else torch.zeros(shape, dtype=torch.int64)
        for key, shape, dtype in rows
        if keep(key)
    }
    return {key: t.abs() if key.endswith("running_var") else t for key, t in state.items()}


def wrapped(state: dict[str, Tensor]) -> dict[str, dict]:
    """Return the same weights as scripts save them: bare, under a key, with prefixes, averaged."""
    other = {key: torch.zeros_like(tensor) for key, tensor in state.items()}
    return {
        "bare": state,
        "model": {"model": state, "epoch": 299, "optimizer": {"state": {}}},
        "state_dict": {"state_dict": state, "arch": "any"},
        "module.": {"state_dict": {f"module.{key}": tensor for key, tensor in state.items()}},
        "averaged": {"state_dict": other, "state_dict_ema": state},
        "model_ema": {"model": other, "model_ema": state},
    }


WRAPPERS = ("bare", "model", "state_dict", "module.", "averaged", "model_ema")
