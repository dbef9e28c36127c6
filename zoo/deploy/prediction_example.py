"""Write `predict_example.py` next to an artefact: a script that needs only the runtime.

The script depends on NumPy, Pillow and the runtime of the format, and prints what
`zoo predict` prints.
"""

from pathlib import Path
from typing import Any

from zoo.deploy import publishing
from zoo.deploy.box_drawing import SHOWN_SCORE
from zoo.deploy.detections import CANDIDATES, DETECTIONS, MAX_OVERLAP

NAME = publishing.REPORTS[0]

_LOADERS = {
    "onnx": """
def load(file):
    import onnxruntime

    session = onnxruntime.InferenceSession(file)
    return lambda x: session.run(None, {manifest["input"]["name"]: x})[0]
""",
    "openvino": """
def load(file):
    import openvino

    # OpenVINO computes in bfloat16 on some processors unless it is told otherwise.
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    model = openvino.Core().compile_model(file, "CPU", settings)
    return lambda x: model(x)[0]
""",
    "pt2": """
def load(file):
    import torch

    program = torch.export.load(file).module()
    return lambda x: program(torch.from_numpy(x)).detach().numpy()
""",
    "aoti": """
def load(file):
    import torch

    program = torch._inductor.aoti_load_package(str(file))
    return lambda x: program(torch.from_numpy(x)).numpy()
""",
    "torchscript": """
def load(file):
    import torch

    program = torch.jit.load(file)
    return lambda x: program(torch.from_numpy(x)).detach().numpy()
""",
    "executorch": """
def load(file):
    import torch
    from executorch.runtime import Runtime

    program = Runtime.get().load_program(file)
    method = program.load_method("forward")
    return lambda x: method.execute([torch.from_numpy(x)])[0].numpy().copy()
""",
}

_HEAD = '''"""Predict with {file}: python {script} photo.jpg ...

Needs NumPy, Pillow and {runtime}, but neither zoo nor its model code. Written by zoo; change it
as you like.
"""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

FOLDER = Path(__file__).resolve().parent
manifest = json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8"))
takes = manifest["input"]
_, height, width = takes["size"]
interpolation = Image.Resampling[(takes["interpolation"] or "bicubic").upper()]

'''

_READ = '''

def read(path):
    """Return an image, upright, as 8-bit RGB or grey."""
    image = ImageOps.exif_transpose(Image.open(path))
    if image.mode.startswith("I"):  # 16 bits
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    if image.mode in ("P", "PA") and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("L" if takes["channels"] == "grey" else "RGB")

'''

_CROP = '''
def resize(image):
    """Resize an image and cut out its centre."""
    if "resize_shorter" in takes:  # the shorter side gets this length, the other is rounded down
        shorter = takes["resize_shorter"]
        longer = int(shorter * max(image.size) / min(image.size))
        size = (shorter, longer) if image.width <= image.height else (longer, shorter)
    else:  # the image just covers this height and width
        cover = takes["resize_to_cover"]
        ratio = min(image.height / cover[0], image.width / cover[1])
        size = (round(image.width / ratio), round(image.height / ratio))
    if size != image.size:
        image = image.resize(size, interpolation)
    left, top = round((size[0] - width) / 2), round((size[1] - height) / 2)
    return image.crop((left, top, left + width, top + height))

'''

_FIT = '''
def resize(image):
    """Fit an image into the upper left corner; return it and the height and width it takes."""
    scale = min(height / image.height, width / image.width)
    inner = (
        min(height, max(1, round(scale * image.height))),
        min(width, max(1, round(scale * image.width))),
    )
    colour = takes["pad_colour"]
    padded = Image.new(
        image.mode, (width, height), tuple(colour) if len(colour) > 1 else colour[0]
    )
    padded.paste(image.resize((inner[1], inner[0]), interpolation), (0, 0))
    return padded, inner

'''

_NORMALISE = '''
def normalise(image):
    """Return an image as a batch of one, 1 C H W."""
    x = np.asarray(image).reshape(height, width, -1).transpose(2, 0, 1)
    if takes["channels"] == "BGR":
        x = x[::-1]
    if takes["dtype"] == "float32":  # otherwise the file takes bytes and normalises them
        mean, std = (
            (255 * np.array(takes[key])).astype(np.float32).reshape(-1, 1, 1)
            for key in ("mean", "std")
        )
        x = (x - mean) / std
    batch = takes["shape"][0]  # a number if the batch is static
    return np.repeat(x[None], batch if isinstance(batch, int) else 1, axis=0)


def name_of(number):
    names = manifest["class_names"]
    return names[number] if names else str(number)

'''

_CLASSIFY = '''
def predict(run, path):
    """Return the five most likely classes of an image."""
    scores = run(normalise(resize(read(path))))[0].astype(np.float64)
    if manifest["postprocessing"] != "softmax":  # the file returns logits
        scores = scores / manifest.get("temperature", 1)
        powers = np.exp(scores - scores.max())
        scores = powers / powers.sum()
    order = np.argsort(-scores, kind="stable")[:5]
    return ", ".join(f"{name_of(i)} {scores[i]:.1%}" for i in order)

'''

_SEGMENT = '''
def predict(run, path):
    """Return the share of each class, and write the class of each pixel to a PNG."""
    image = read(path)
    padded, inner = resize(image)
    output = run(normalise(padded))[0]
    if manifest["postprocessing"] == "argmax":
        classes = output.astype(np.int32)
    elif len(output) == 1:  # one logit decides between two classes
        classes = (output[0] > 0).astype(np.int32)
    else:
        classes = output.argmax(axis=0).astype(np.int32)
    sides = zip(classes.shape, inner, (height, width))
    down, across = (max(1, round(n * part / whole)) for n, part, whole in sides)
    mask = Image.fromarray(classes[:down, :across]).resize(image.size, Image.Resampling.NEAREST)
    mask = np.asarray(mask)
    Image.fromarray(mask.astype(np.uint8)).save(Path(path).stem + "_mask.png")
    found, counts = np.unique(mask, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return ", ".join(f"{name_of(found[i])} {counts[i] / mask.size:.1%}" for i in order)

'''

_DETECT = f'''
def suppress(output):
    """Return boxes, scores and classes without boxes that overlap a better one of their class."""
    boxes, scores = output[:, :4], output[:, 4:]
    order = np.argsort(-scores.reshape(-1), kind="stable")[:{CANDIDATES}]
    anchors, classes = np.divmod(order, scores.shape[1])
    kept = []
    for i, (box, number) in enumerate(zip(boxes[anchors], classes)):
        better = boxes[anchors[[j for j in kept if classes[j] == number]]]
        sides = np.minimum(box[2:], better[:, 2:]) - np.maximum(box[:2], better[:, :2])
        common = sides.clip(0).prod(axis=1)
        areas = (better[:, 2:] - better[:, :2]).clip(0).prod(axis=1)
        union = areas + (box[2:] - box[:2]).clip(0).prod() - common
        if not (common > {MAX_OVERLAP} * np.maximum(union, 1e-12)).any():
            kept.append(i)
    kept = kept[:{DETECTIONS}]
    return boxes[anchors[kept]], scores.reshape(-1)[order[kept]], classes[kept]


def predict(run, path):
    """Return the class, the score and the box, in pixels, of each object that is found."""
    image = read(path)
    padded, inner = resize(image)
    output = run(normalise(padded))[0]
    if manifest["postprocessing"] == "nms":  # rows of a box, a score and a class
        output = output[output[:, 5] >= 0]
        boxes, scores, classes = output[:, :4], output[:, 4], output[:, 5].astype(int)
    else:
        boxes, scores, classes = suppress(output)
    whole = np.array([width / inner[1], height / inner[0]] * 2)  # without the padding
    corners = (boxes * whole).clip(0, 1) * (image.size * 2)
    return ", ".join(
        f"{{name_of(number)}} {{score:.1%}} at {{' '.join(f'{{x:.0f}}' for x in box)}}"
        for box, score, number in zip(corners, scores, classes)
        if score >= {SHOWN_SCORE}
    ) or "nothing found"

'''

_BODIES = {
    "classification": (_CROP, _NORMALISE, _CLASSIFY),
    "segmentation": (_FIT, _NORMALISE, _SEGMENT),
    "detection": (_FIT, _NORMALISE, _DETECT),
}

_MAIN = """
if __name__ == "__main__":
    run = load(FOLDER / manifest["artefact"]["file"])
    for path in sys.argv[1:]:
        print(f"{path}: {predict(run, path)}")
"""


def write(content: dict[str, Any], folder: Path) -> list[str]:
    """Write the script for an artefact if there is one for its format, task and input.

    Args:
        content: The manifest.
        folder: The folder of the artefact.

    Returns:
        The names of the files written.
    """
    takes, task = content["input"], content["task"]
    statistics = takes["dtype"] == "uint8" or (takes["mean"] and takes["std"])
    if (
        content["format"] not in _LOADERS
        or task not in _BODIES
        or len(takes["size"]) != 3
        or takes["channels"] is None
        or len(content["outputs"]) != 1
        or not statistics
    ):
        return []
    runtime = {"pt2": "PyTorch", "aoti": "PyTorch", "torchscript": "PyTorch"}
    names = {"onnx": "ONNX Runtime", "openvino": "OpenVINO", "executorch": "ExecuTorch", **runtime}
    head = _HEAD.format(
        file=content["artefact"]["file"], script=NAME, runtime=names[content["format"]]
    )
    script = head + _LOADERS[content["format"]] + _READ + "".join(_BODIES[task]) + _MAIN
    (folder / NAME).write_text(script, encoding="utf-8")
    return [NAME]
