"""The Haar transform against the way of `pytorch_wavelets`, all forms called in turn in one run.

    python benchmarks/haar.py [--threads 1] [--rounds 100]

The baseline is what that package does for the wavelet db1: a grouped convolution along the width,
then one along the height, the bands copied apart; backwards and in the inverse, transposed
convolutions. Its filters are laid out beforehand here, which spares it some work. Beside our forms
stands `conv2x2`, a fixed grouped convolution with all four bands at once; `auto` is always faster,
so the package has no such form (the inverse of `plain` is slower on large maps). Every figure is
the baseline's median time over the form's: larger is better. One thread is the default: threads
that one form leaves spinning disturb the next. Ends with 1 if `auto` is not three times as fast for
each task, by the geometric mean over the shapes.
"""

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.environment import summary
from zoo.ops import haar, haar_pyramid, inverse_haar
from zoo.ops.wavelet import BANDS, running

LEAST = 3.0
SHAPES = {  # B C H W: what is transformed, and where
    (1, 48, 56, 56): "wavemix_192_16_l3 at 224",
    (8, 48, 56, 56): "the same, 8 images",
    (1, 36, 32, 32): "wavemix_144_7_l1_cifar10 at 32",
    (8, 36, 32, 32): "the same, 8 images",
    (1, 64, 128, 128): "wavemix_seg_256_16_l4 at 512",
    (1, 112, 12, 12): "mobilemamba_t2 at 192",
    (1, 160, 16, 16): "mobilemamba_b1 at 256",
    (8, 272, 7, 7): "mobilemamba_s6 at 224, odd, 8 images",
    (1, 3, 256, 256): "an image",
}
ALONG_WIDTH, ALONG_HEIGHT = (1, 2), (2, 1)  # kernel sizes, and strides


class Separable:
    """The baseline: two filters a channel along one axis, then along the other."""

    def __init__(self, channels: int):
        low, high = (
            torch.tensor([1.0, 1.0]) / math.sqrt(2),
            torch.tensor([1.0, -1.0]) / math.sqrt(2),
        )
        self.banks, self.filters = {}, {}
        for size, count in ((ALONG_WIDTH, channels), (ALONG_HEIGHT, 2 * channels)):
            self.banks[size] = torch.stack([low, high]).view(2, 1, *size).repeat(count, 1, 1, 1)
            self.filters[size] = [
                f.view(1, 1, *size).repeat(channels, 1, 1, 1) for f in (low, high)
            ]

    def split(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Twice the channels, half the size along one axis; an odd side is completed."""
        odd = [x.shape[3] % 2, x.shape[2] % 2] if size == ALONG_WIDTH else [0, x.shape[2] % 2]
        x = F.pad(x, (0, odd[0], 0, odd[1])) if any(odd) else x
        return F.conv2d(x, self.banks[size], stride=size, groups=x.shape[1])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """LL (B C h w), and LH, HL, HH (B C 3 h w)."""
        bands = self.split(self.split(x, ALONG_WIDTH), ALONG_HEIGHT).unflatten(1, (-1, 4))
        return bands[:, :, 0].contiguous(), bands[:, :, 1:].contiguous()

    def join(self, low: Tensor, high: Tensor, size: tuple[int, int]) -> Tensor:
        """Double the size along one axis."""
        halves = zip((low, high), self.filters[size], strict=True)
        return sum(F.conv_transpose2d(x, f, stride=size, groups=x.shape[1]) for x, f in halves)  # type: ignore[return-value]

    def inverse(self, low: Tensor, details: Tensor) -> Tensor:
        """The map of its bands."""
        lh, hl, hh = details.unbind(2)
        left, right = self.join(low, lh, ALONG_HEIGHT), self.join(hl, hh, ALONG_HEIGHT)
        return self.join(left, right, ALONG_WIDTH)

    def pyramid(self, x: Tensor, levels: int) -> list[tuple[Tensor, Tensor]]:
        """The bands of each level."""
        found = []
        for _ in range(levels):
            found.append(self.forward(x))
            x = found[-1][0]
        return found


def conv2x2(x: Tensor, bank: Tensor) -> Tensor:
    """All four bands by one convolution of each channel."""
    odd = (0, x.shape[3] % 2, 0, x.shape[2] % 2)
    x = F.pad(x, odd) if any(odd) else x
    return F.conv2d(x, bank, stride=2, groups=x.shape[1]).unflatten(1, (-1, 4))


def backwards(form: Callable[[Tensor], Tensor | tuple[Tensor, ...]], x: Tensor, like: Tensor):
    """Forward and backward."""
    bands = form(x)
    parts = (like[:, :, 0], like[:, :, 1:]) if isinstance(bands, tuple) else (like,)
    torch.autograd.backward(bands, parts, inputs=[x])
    x.grad = None


def tasks(shape: tuple[int, ...]) -> dict[str, dict[str, Callable[[], object]]]:
    """What is timed on maps of `shape`: task -> form -> call, the baseline first."""
    baseline, x = Separable(shape[1]), torch.randn(shape)
    bands = haar(x, "plain")
    signs = [[1, 1, 1, 1], [1, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]]
    bank = (torch.tensor(signs) / 2).view(len(BANDS), 1, 2, 2).repeat(shape[1], 1, 1, 1)
    grouped = partial(conv2x2, bank=bank)
    low, details = baseline.forward(x)
    assert torch.allclose(torch.cat([low.unsqueeze(2), details], 2), bands, atol=1e-5)
    assert torch.allclose(grouped(x), bands, atol=1e-5)
    ours = {form: partial(haar, backend=form) for form in ("auto", "plain")}
    x_grad = x.clone().requires_grad_()
    forward = {"baseline": baseline.forward, **ours, "conv2x2": grouped}
    table: dict[str, dict[str, Callable[[], object]]] = {
        "forward": {name: partial(form, x) for name, form in forward.items()},
        "forward and backward": {
            name: partial(backwards, form, x_grad, bands) for name, form in forward.items()
        },
        "inverse": {
            "baseline": partial(baseline.inverse, low, details),
            **{form: partial(inverse_haar, bands, backend=form) for form in ours},
            "conv2x2": partial(
                F.conv_transpose2d, bands.flatten(1, 2), bank, stride=2, groups=shape[1]
            ),
        },
    }
    if min(shape[2:]) >= 32:
        table["3 levels"] = {
            "baseline": partial(baseline.pyramid, x, 3),
            **{form: partial(haar_pyramid, x, 3, form) for form in ours},
        }
    return table


def medians(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median time of each call in microseconds; they take turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + rounds // 10):
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            if turn >= rounds // 10:  # the first tenth warms up
                times[name].append(time.perf_counter() - begin)
    return {name: 1e6 * statistics.median(values) for name, values in times.items()}


def main() -> int:
    """Print a line for each shape and task: the baseline's time, and the ratio of each form."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=100, help="calls of each form")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    print(f"{summary()}; torch {torch.__version__}; auto runs {running()}")
    print(f"{given.threads} threads, {given.rounds} rounds; times faster than the baseline:")
    ratios: dict[tuple[str, str], list[float]] = {}
    for shape, where in SHAPES.items():
        print(f"{list(shape)}  {where}")
        for task, calls in tasks(shape).items():
            inference = task != "forward and backward"
            with torch.inference_mode(inference):
                found = medians(calls, given.rounds)
            base = found.pop("baseline")
            row = {name: base / value for name, value in found.items()}
            for form in ("auto", "plain"):
                ratios.setdefault((form, task), []).append(row[form])
            shown = "  ".join(f"{name} {ratio:5.1f}" for name, ratio in row.items())
            print(f"    {task:<21} baseline {base:9.0f} us   {shown}", flush=True)
    print("over the shapes:")
    means = {key: statistics.geometric_mean(values) for key, values in ratios.items()}
    for (form, task), mean in sorted(means.items()):
        least = min(ratios[form, task])
        print(f"    {form:<6}{task:<21} geometric mean {mean:5.1f}, least {least:5.1f}")
    return int(any(mean < LEAST for (form, _), mean in means.items() if form == "auto"))


if __name__ == "__main__":
    sys.exit(main())
