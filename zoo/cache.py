"""The folder of downloaded files: that of torch.hub, found without importing PyTorch."""

import os
import sys
from pathlib import Path


def cache_folder(cache_dir: str | Path | None = None) -> Path:
    """Return the folder of downloaded files, which need not exist.

    Args:
        cache_dir: The folder, if it is another one than torch.hub's.
    """
    if cache_dir is not None:
        return Path(cache_dir)
    torch = sys.modules.get("torch")
    if torch is not None:  # `torch.hub.set_dir` may have chosen another one
        return Path(torch.hub.get_dir()) / "checkpoints"
    base = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.path.expanduser(os.environ.get("TORCH_HOME", os.path.join(base, "torch")))
    return Path(home) / "hub" / "checkpoints"
