"""`zoo score`: two scores of untrained networks, to rank networks of one kind."""

import argparse
from typing import TYPE_CHECKING, Any

from zoo import registry
from zoo.errors import BadInput
from zoo.progress import phase

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.profiling.training_free import TrainingFreeScores

IMAGES, REPEATS = 16, 5
HELP = "length distortion and condition of the tangent kernel of untrained networks (As-ViT)"
LOADS_PYTORCH = True  # which takes seconds: the command line says so first


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("models", nargs="+", help="registered names, or timm/<name>")
    parser.add_argument(
        "--size", type=int, metavar="SIDE", help="side of the images, pixels; default: their own"
    )
    parser.add_argument(
        "--images", type=int, default=IMAGES, help=f"images of the kernel; default: {IMAGES}"
    )
    parser.add_argument(
        "--repeats", type=int, default=REPEATS, help=f"initialisations; default: {REPEATS}"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the first one; default: 0")


def run(args: argparse.Namespace) -> None:
    """Print the scores of each model, and its rank if there are several.

    Raises:
        ZooError: A model is unknown, has no feature maps, or does not take this size.
    """
    from zoo.reports.table import Heading, fitted, print_all

    for name in args.models:
        registry.get_spec(name)  # raises for an unknown name
    found = []
    for name in args.models:
        with phase(f"scoring {name}"):
            found.append(
                score(name, size=args.size, count=args.images, repeats=args.repeats, seed=args.seed)
            )
    columns = [
        Heading("model", args.models, right=False),
        Heading("length distortion", [f"{one.length_distortion:.4g}" for one in found]),
        Heading("NTK condition", [f"{one.ntk_condition:.4g}" for one in found]),
    ]
    if len(found) > 1:
        columns.append(Heading("rank", [str(place) for place in ranks(found)]))
    print_all(
        f"untrained, {args.repeats} initialisations, {args.images} digits; longer is more"
        " expressive, a lower condition is easier to train",
        fitted(columns)[0],
    )


def score(
    name: str,
    images: "Tensor | None" = None,
    *,
    size: int | None = None,
    count: int = IMAGES,
    repeats: int = REPEATS,
    seed: int = 0,
) -> "TrainingFreeScores":
    """Return both scores of a model; see `zoo.score`."""
    from zoo.profiling.training_free import training_free_scores

    if images is not None and (size is not None or count != IMAGES):
        raise BadInput("size and count have no effect with images; leave them out")
    if images is None:
        images = _digits(name, size, count)
    return training_free_scores(name, images, repeats=repeats, seed=seed)


def _digits(name: str, size: int | None, count: int) -> "Tensor":
    """Return normalised images of the embedded digits, count 3 H W."""
    from zoo.data.create import create_datamodule
    from zoo.inputs import published_input, published_normalisation

    if count < 2:
        raise BadInput(f"count={count}: at least 2 images are compared")
    sides: Any = size or (published_input(name)["size"] or (3, 224, 224))[1:]
    data = create_datamodule(
        {"name": "digits", "image_size": sides, "num_workers": 0},
        batch_size=count,
        **published_normalisation(name),
    )
    data.setup("validate")
    images: Any = data.val_dataloader().dataset
    return images.load([(0, i) for i in range(count)])[0]


def ranks(found: "list[TrainingFreeScores]") -> list[int]:
    """Return the place of each network by the sum of its places in both scores, from 1."""
    longest = sorted(-one.length_distortion for one in found)
    lowest = sorted(one.ntk_condition for one in found)
    sums = [
        longest.index(-one.length_distortion) + lowest.index(one.ntk_condition) for one in found
    ]
    return [sorted(sums).index(total) + 1 for total in sums]
