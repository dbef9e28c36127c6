"""Compare the speed of the Haar transform with the method of `pytorch_wavelets`.

    python benchmarks/haar.py [--threads 1] [--rounds 100]

The baseline is the method of that package for the wavelet db1: a grouped convolution along the
width, one along the height, and a copy of the bands; the backward pass and the inverse use
transposed convolutions. Creating the filters is not timed. For comparison there is also `conv2x2`,
a single grouped convolution for all four bands. All implementations are called in turn.

The script prints the median time of the baseline divided by that of each implementation; larger is
better. By default it uses one thread, because threads of one implementation that are still spinning
would disturb the next one. The exit status is 1 if the geometric mean over the shapes is below 3
for a task of `auto`.
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
from zoo.ops.wavelet import BANDS, auto_backend

MIN_SPEEDUP = 3.0
SHAPES = {  # B C H W: model and image size that use this shape
    (1, 48, 56, 56): "wavemix_192_16_l3 at 224",
    (8, 48, 56, 56): "same, 8 images",
    (1, 36, 32, 32): "wavemix_144_7_l1_cifar10 at 32",
    (8, 36, 32, 32): "same, 8 images",
    (1, 64, 128, 128): "wavemix_seg_256_16_l4 at 512",
    (1, 112, 12, 12): "mobilemamba_t2 at 192",
    (1, 160, 16, 16): "mobilemamba_b1 at 256",
    (8, 272, 7, 7): "mobilemamba_s6 at 224, odd, 8 images",
    (1, 3, 256, 256): "an image",
}
ALONG_WIDTH, ALONG_HEIGHT = (1, 2), (2, 1)  # kernel sizes and strides


class Separable:
    """The baseline: two filters per channel along one axis, then along the other."""

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
        """Double the channels and halve the size along one axis, padding odd sides."""
        odd = [x.shape[3] % 2, x.shape[2] % 2] if size == ALONG_WIDTH else [0, x.shape[2] % 2]
        x = F.pad(x, (0, odd[0], 0, odd[1])) if any(odd) else x
        return F.conv2d(x, self.banks[size], stride=size, groups=x.shape[1])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return LL (B C h w), and LH, HL and HH (B C 3 h w)."""
        bands = self.split(self.split(x, ALONG_WIDTH), ALONG_HEIGHT).unflatten(1, (-1, 4))
        return bands[:, :, 0].contiguous(), bands[:, :, 1:].contiguous()

    def join(self, low: Tensor, high: Tensor, size: tuple[int, int]) -> Tensor:
        """Double the size along one axis."""
        halves = zip((low, high), self.filters[size], strict=True)
        return sum(F.conv_transpose2d(x, f, stride=size, groups=x.shape[1]) for x, f in halves)  # type: ignore[return-value]

    def inverse(self, low: Tensor, details: Tensor) -> Tensor:
        """Return the feature map of its bands."""
        lh, hl, hh = details.unbind(2)
        left, right = self.join(low, lh, ALONG_HEIGHT), self.join(hl, hh, ALONG_HEIGHT)
        return self.join(left, right, ALONG_WIDTH)

    def pyramid(self, x: Tensor, levels: int) -> list[tuple[Tensor, Tensor]]:
        """Return the bands of each level."""
        found = []
        for _ in range(levels):
            found.append(self.forward(x))
            x = found[-1][0]
        return found


def conv2x2(x: Tensor, bank: Tensor) -> Tensor:
    """Compute all four bands with one grouped convolution."""
    odd = (0, x.shape[3] % 2, 0, x.shape[2] % 2)
    x = F.pad(x, odd) if any(odd) else x
    return F.conv2d(x, bank, stride=2, groups=x.shape[1]).unflatten(1, (-1, 4))


def forward_backward(
    function: Callable[[Tensor], Tensor | tuple[Tensor, ...]], x: Tensor, like: Tensor
) -> None:
    """Run forward and backward once."""
    bands = function(x)
    parts = (like[:, :, 0], like[:, :, 1:]) if isinstance(bands, tuple) else (like,)
    torch.autograd.backward(bands, parts, inputs=[x])
    x.grad = None


def tasks(shape: tuple[int, ...]) -> dict[str, dict[str, Callable[[], object]]]:
    """Return the calls to time for `shape`, as task -> implementation -> call."""
    baseline, x = Separable(shape[1]), torch.randn(shape)
    bands = haar(x, "plain")
    signs = [[1, 1, 1, 1], [1, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]]
    bank = (torch.tensor(signs) / 2).view(len(BANDS), 1, 2, 2).repeat(shape[1], 1, 1, 1)
    grouped = partial(conv2x2, bank=bank)
    low, details = baseline.forward(x)
    assert torch.allclose(torch.cat([low.unsqueeze(2), details], 2), bands, atol=1e-5)
    assert torch.allclose(grouped(x), bands, atol=1e-5)
    ours = {backend: partial(haar, backend=backend) for backend in ("auto", "plain")}
    x_grad = x.clone().requires_grad_()
    forward = {"baseline": baseline.forward, **ours, "conv2x2": grouped}
    table: dict[str, dict[str, Callable[[], object]]] = {
        "forward": {name: partial(function, x) for name, function in forward.items()},
        "forward and backward": {
            name: partial(forward_backward, function, x_grad, bands)
            for name, function in forward.items()
        },
        "inverse": {
            "baseline": partial(baseline.inverse, low, details),
            **{name: partial(inverse_haar, bands, backend=name) for name in ours},
            "conv2x2": partial(
                F.conv_transpose2d, bands.flatten(1, 2), bank, stride=2, groups=shape[1]
            ),
        },
    }
    if min(shape[2:]) >= 32:
        table["3 levels"] = {
            "baseline": partial(baseline.pyramid, x, 3),
            **{name: partial(haar_pyramid, x, 3, name) for name in ours},
        }
    return table


def medians(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median time of each call in microseconds, calling them in turn."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + rounds // 10):
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            if turn >= rounds // 10:  # the first tenth warms up
                times[name].append(time.perf_counter() - begin)
    return {name: 1e6 * statistics.median(values) for name, values in times.items()}


def main() -> int:
    """Print the time of the baseline and the speed-ups for each shape and task."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=100, help="calls per implementation")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    print(f"{summary()}; torch {torch.__version__}; backend auto is {auto_backend()}")
    print(f"{given.threads} threads, {given.rounds} rounds; speed-up over the baseline:")
    ratios: dict[tuple[str, str], list[float]] = {}
    for shape, where in SHAPES.items():
        print(f"{list(shape)}  {where}")
        for task, calls in tasks(shape).items():
            inference = task != "forward and backward"
            with torch.inference_mode(inference):
                found = medians(calls, given.rounds)
            base = found.pop("baseline")
            row = {name: base / value for name, value in found.items()}
            for name in ("auto", "plain"):
                ratios.setdefault((name, task), []).append(row[name])
            shown = "  ".join(f"{name} {ratio:5.1f}" for name, ratio in row.items())
            print(f"    {task:<21} baseline {base:9.0f} us   {shown}", flush=True)
    print("over all shapes:")
    means = {key: statistics.geometric_mean(values) for key, values in ratios.items()}
    for (name, task), mean in sorted(means.items()):
        lowest = min(ratios[name, task])
        print(f"    {name:<6}{task:<21} geometric mean {mean:5.1f}, minimum {lowest:5.1f}")
    return int(any(mean < MIN_SPEEDUP for (name, _), mean in means.items() if name == "auto"))


if __name__ == "__main__":
    sys.exit(main())
