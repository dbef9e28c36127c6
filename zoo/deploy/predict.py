"""Pictures through an artefact, with nothing but its runtime and its manifest.

Of an ONNX or OpenVINO file neither PyTorch nor a model of this package is imported: images are
prepared by Pillow and NumPy exactly as the manifest says.
"""

import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from zoo.deploy import files
from zoo.errors import BadInput
from zoo.images import convert, reason
from zoo.runtimes.artefacts import LoadedArtefact

OPACITY = 0.5  # of a mask over its picture


@dataclass(frozen=True)
class Prepared:
    """A picture as an artefact takes it.

    Attributes:
        path: Of the file.
        picture: As it was read, RGB or grey.
        pixels: C H W, bytes or normalised float32.
        inner: Height and width of the picture inside, from the upper left, where it was fitted in;
            None where it was cropped.
    """

    path: Path
    picture: Image.Image
    pixels: np.ndarray
    inner: tuple[int, int] | None


class Predictor:
    """An artefact that answers for pictures.

    Args:
        artefact: The file, its manifest or the folder of both.
        threads: That share one call; None: all there are.

    Raises:
        BadInput: The manifest does not fit, or does not say enough to predict.
        MissingExtra: A package of the runtime is not installed.
    """

    def __init__(self, artefact: str | Path, threads: int | None = None) -> None:
        self.file, self.manifest = files.read(artefact)
        self.task = self.manifest.get("task", "classification")
        if self.task not in ("classification", "segmentation"):
            raise BadInput(f"{self.file.name} is a model for {self.task}; predict classifies or "
                           "segments")  # fmt: skip
        self.input = self.manifest["input"]
        if len(self.input["shape"]) != 4 or self.input["size"][0] not in (1, 3):
            raise BadInput(
                f"{self.file.name} takes {self.input['shape']}; predict feeds pictures, grey or RGB"
            )
        pixels = self.input["dtype"] == "uint8"
        if not pixels and not (self.input["mean"] and self.input["std"]):
            raise BadInput(
                f"{self.file.parent / files.NAME} states no mean and std to normalise by"
            )
        self.artefact = LoadedArtefact(self.file, self.manifest, threads=threads)

    def prepare(self, path: Path) -> Prepared:
        """Read a picture and make of it what the artefact takes.

        Raises:
            BadInput: The file cannot be read as an image.
        """
        channels, *size = self.input["size"]
        try:
            with Image.open(path) as image:
                picture = convert(image, channels)
        except Exception as error:  # Pillow's decoders raise anything on damaged files
            raise BadInput(f"cannot read image {path} ({reason(error)})") from error
        filled, inner = resized(picture, (size[0], size[1]), self.input)
        pixels = np.asarray(filled).reshape(*size, channels).transpose(2, 0, 1)
        if self.input["dtype"] != "uint8":
            # In units of the bytes, as in training.
            shift, scale = (
                255 * np.asarray(self.input[key], np.float64) for key in ("mean", "std")
            )
            pixels = pixels - shift.astype(np.float32).reshape(-1, 1, 1)
            pixels /= scale.astype(np.float32).reshape(-1, 1, 1)
        return Prepared(path, picture, np.ascontiguousarray(pixels), inner)

    def __call__(self, batch: Sequence[Prepared]) -> np.ndarray:
        """Return the first output of the artefact, for as many images as were handed in."""
        return self.artefact(np.stack([prepared.pixels for prepared in batch]))

    def class_name(self, index: int) -> str:
        """Return what a class is called; its number where the manifest has no names."""
        names = self.manifest.get("class_names")
        return names[index] if names else str(index)

    def classify(self, output: np.ndarray, top: int) -> list[dict[str, Any]]:
        """Return the likeliest classes of one image, the first one first, of its logits."""
        known = self.manifest.get("postprocessing") == "softmax"
        probabilities = output if known else softmax(output.astype(np.float64))
        order = np.argsort(-probabilities, kind="stable")[:top]
        return [
            {"class": int(i), "name": self.class_name(int(i)), "probability": float(p)}
            for i, p in zip(order, probabilities[order], strict=True)
        ]

    def segment(self, output: np.ndarray, prepared: Prepared) -> np.ndarray:
        """Return the class of each pixel of the picture, in the picture's own size, of its map."""
        numbers = self._numbers(output)
        height, width = numbers.shape
        if prepared.inner is not None:  # what the picture does not fill is cut away
            sides = zip(numbers.shape, prepared.inner, self.input["size"][1:], strict=True)
            height, width = (max(1, round(n * part / whole)) for n, part, whole in sides)
        found = Image.fromarray(numbers[:height, :width].astype(np.int32))
        return np.asarray(found.resize(prepared.picture.size, Image.Resampling.NEAREST))

    def _numbers(self, output: np.ndarray) -> np.ndarray:
        if self.manifest.get("postprocessing") == "argmax":
            return output.astype(np.int64)
        if len(output) == 1:  # one logit: the thing or not
            return (output[0] > 0).astype(np.int64)
        return output.argmax(axis=0)


def resized(
    picture: Image.Image, size: tuple[int, int], how: dict[str, Any]
) -> tuple[Image.Image, tuple[int, int] | None]:
    """Bring a picture to `size` (height, width) as a manifest says.

    Returns:
        The picture, and the size of its inside where it was fitted in.
    """
    way = Image.Resampling[str(how["interpolation"] or "bicubic").upper()]
    if how.get("resize") == "fit":
        return _fitted(picture, size, way, how["mean"] or _inside(how))
    return _cropped(picture, size, way, how["crop_pct"] or 1.0), None


def _inside(how: dict[str, Any]) -> list[float]:
    return (how.get("normalised_inside") or {}).get("mean") or [0.5] * how["size"][0]


def _cropped(
    picture: Image.Image, size: tuple[int, int], way: Image.Resampling, share: float
) -> Image.Image:
    """The shorter side to `size` over `share`, then the middle; as timm evaluates."""
    goal = [math.floor(side / share) for side in size]
    width, height = picture.size
    if goal[0] == goal[1]:
        short, long = min(width, height), max(width, height)
        other = int(goal[0] * long / short)
        shape = (goal[0], other) if width <= height else (other, goal[0])
    else:
        ratio = min(height / goal[0], width / goal[1])
        shape = (round(width / ratio), round(height / ratio))
    if shape != picture.size:
        picture = picture.resize(shape, way)
    left, top = (round((have - want) / 2) for have, want in zip(shape, size[::-1], strict=True))
    return picture.crop((left, top, left + size[1], top + size[0]))


def _fitted(
    picture: Image.Image, size: tuple[int, int], way: Image.Resampling, mean: Sequence[float]
) -> tuple[Image.Image, tuple[int, int]]:
    """The whole picture, as large as fits; right of it and below is the mean colour."""
    width, height = picture.size
    scale = min(size[0] / height, size[1] / width)
    inner = (
        min(size[0], max(1, round(scale * height))),
        min(size[1], max(1, round(scale * width))),
    )
    grey: Any = tuple(round(255 * value) for value in mean)
    whole = Image.new(picture.mode, (size[1], size[0]), grey if len(mean) > 1 else grey[0])
    whole.paste(picture.resize((inner[1], inner[0]), way), (0, 0))
    return whole, inner


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return probabilities of logits, along the last axis."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def colours(count: int) -> np.ndarray:
    """Return a colour for each class, count x 3 bytes: the first is black, all of them differ."""
    numbers = np.arange(count)
    channels = [
        sum(((numbers >> (3 * bit + channel)) & 1) << (7 - bit) for bit in range(8))
        for channel in range(3)
    ]
    return np.stack(channels, axis=1).astype(np.uint8)


def overlay(picture: Image.Image, numbers: np.ndarray) -> Image.Image:
    """Return a picture with its mask over it; class 0 stays clear."""
    painted = colours(int(numbers.max()) + 1)[numbers]
    base = np.asarray(picture.convert("RGB"), np.float32)
    mixed = np.where(numbers[..., None] > 0, (1 - OPACITY) * base + OPACITY * painted, base)
    return Image.fromarray(mixed.round().astype(np.uint8))


def pictures(paths: Sequence[str]) -> list[Path]:
    """List the files that are meant: themselves, and those in folders, hidden ones left out.

    Raises:
        BadInput: One is not there, or a folder holds no file.
    """
    found: list[Path] = []
    for given in map(Path, paths):
        if not given.exists():
            raise BadInput(f"no image or folder at {str(given)!r}")
        inside = sorted(f for f in given.iterdir() if f.is_file() and f.name[0] != ".") if (
            given.is_dir()
        ) else [given]  # fmt: skip
        if not inside:
            raise BadInput(f"folder {str(given)!r} holds no file")
        found += inside
    return found


def predict(
    predictor: Predictor,
    paths: Sequence[Path],
    *,
    batch_size: int = 8,
    top: int = 5,
    out: Path | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield an answer for each file, in order; a file that is no image yields its `error`.

    Args:
        predictor: What answers.
        paths: Of the files.
        batch_size: Images a call.
        top: Classes to name of a picture.
        out: Of segmentation, the folder for masks (numbers of classes) and pictures under them.

    Raises:
        BadInput: A number that cannot work, or a folder that cannot be written.
    """
    for name, value in (("batch", batch_size), ("top", top)):
        if value < 1:
            raise BadInput(f"--{name} {value} must be at least 1")
    for begin in range(0, len(paths), batch_size):
        answers: dict[Path, dict[str, Any]] = {}
        batch: list[Prepared] = []
        for path in paths[begin : begin + batch_size]:
            try:
                batch.append(predictor.prepare(path))
            except BadInput as error:
                answers[path] = {"file": str(path), "error": str(error)}
        for prepared, output in zip(batch, predictor(batch) if batch else (), strict=True):
            answers[prepared.path] = {"file": str(prepared.path)} | _answer(
                predictor, prepared, output, top, out
            )
        yield from (answers[path] for path in paths[begin : begin + batch_size])


def _answer(
    predictor: Predictor, prepared: Prepared, output: np.ndarray, top: int, out: Path | None
) -> dict[str, Any]:
    if predictor.task == "classification":
        return {"classes": predictor.classify(output, top)}
    numbers = predictor.segment(output, prepared)
    found, counts = np.unique(numbers, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    shares = [
        {
            "class": int(found[i]),
            "name": predictor.class_name(int(found[i])),
            "share": float(counts[i] / numbers.size),
        }
        for i in order
    ]
    return {"classes": shares} | ({} if out is None else _draw(prepared, numbers, out))


def _draw(prepared: Prepared, numbers: np.ndarray, out: Path) -> dict[str, str]:
    # With the suffix of the picture in the name: a.png and a.jpg have masks of their own.
    name = prepared.path.name.replace(".", "_")
    mask, drawn = out / f"{name}_mask.png", out / f"{name}_overlay.png"
    try:
        out.mkdir(parents=True, exist_ok=True)
        kind = np.uint8 if numbers.max() < 256 else np.uint16
        Image.fromarray(numbers.astype(kind)).save(mask)
        overlay(prepared.picture, numbers).save(drawn)
    except OSError as error:
        raise BadInput(f"cannot write to {out}: {error.strerror or error}") from error
    return {"mask": str(mask), "overlay": str(drawn)}


def command(args: Any) -> None:
    """Run `python -m zoo predict`: answers on standard output, what failed on standard error.

    Raises:
        BadInput: The artefact or a path cannot work; or in the end, if any file was no image.
    """
    paths = pictures(args.images)
    predictor = Predictor(args.artefact, args.threads)
    out = None
    if predictor.task == "segmentation":
        out = Path(args.out or "masks")
    elif args.out:
        raise BadInput(f"--out {args.out}: {predictor.file.name} classifies; it draws no masks")
    answers, failed = [], 0
    for answer in predict(predictor, paths, batch_size=args.batch, top=args.top, out=out):
        answers.append(answer)
        failed += "error" in answer
        if "error" in answer:
            print(f"error: {answer['error']}", file=sys.stderr)
        elif not args.json:
            print(_line(answer))
    if args.json:
        print(json.dumps(answers, indent=2, ensure_ascii=False))
    if failed:
        raise BadInput(f"{failed} of {len(paths)} files could not be read as images")


def _line(answer: dict[str, Any]) -> str:
    parts = [
        f"{entry['name']} {entry.get('probability', entry.get('share')):.1%}"
        for entry in answer["classes"]
    ]
    drawn = f" -> {answer['overlay']}" if "overlay" in answer else ""
    return f"{answer['file']}: {', '.join(parts)}{drawn}"
