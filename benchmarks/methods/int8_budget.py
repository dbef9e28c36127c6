"""What int8 costs in accuracy and saves in time, with and without repairs.

    python benchmarks/methods/int8_budget.py --out runs/int8_budget

trains mobilenetv2_035 on digits with several seeds, writes int8 files by several recipes
for ONNX Runtime, and evaluates them on the 360 validation images. Drops are paired per image, and
the interval is over the seeds; times are paired with the float file. Finished parts are kept in
--out. The record goes to results/methods, the picture to docs/pictures.
"""

import argparse
import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import torch
from scipy.stats import t as student

import zoo
from zoo.compression import calibration
from zoo.data.create import create_datamodule
from zoo.settings import DataConfig

ROOT = Path(__file__).parents[2]
SIDE = 32
RECIPES = {
    "nearest": {"repairs": []},
    "biases": {"repairs": ["biases"]},
    "rounding": {"repairs": ["rounding", "biases"]},
}
FORMATS = ("onnx",)


def train(seed, options):
    """Return the model of a seed, trained once."""
    out = Path(options.out) / f"seed{seed}"
    made = sorted(out.glob("*/checkpoints/best.ckpt"))
    if not made:
        zoo.train(
            model="mobilenetv2_035", data="digits", epochs=options.epochs, seed=seed,
            progress=False, **{"train.out": str(out), "data.image_size": SIDE},
        )  # fmt: skip
        made = sorted(out.glob("*/checkpoints/best.ckpt"))
    model = zoo.create_model("mobilenetv2_035", num_classes=10)
    zoo.load_weights(model, made[0].parents[1])
    return model.eval()


def once(folder, name, compute):
    """Return a part of the record, computed once."""
    file = Path(folder) / f"{name}.json"
    if not file.exists():
        found = compute()
        file.write_text(json.dumps(found), encoding="utf-8")
    return json.loads(file.read_text(encoding="utf-8"))


def measured(seed, format, options, data):
    """Return drop and time of each recipe for one seed."""
    model = train(seed, options)
    batches = calibration.calibration(data, 64)
    found = {}
    for name, recipe in RECIPES.items():
        target = Path(options.out) / "artefact"
        made = zoo.quantize(
            model, format, target, batches=calibration.arrays(batches, data), data=data,
            input_size=(1, 3, SIDE, SIDE), **recipe,
        )  # fmt: skip
        about = made.manifest["quantization"]
        found[name] = {
            "float": 100 * about["score"]["float"],
            "drop": about["drop"]["points"],
            "ratio": about["latency"]["ratio"],
            "snr_db": about["snr_db"],
        }
        shutil.rmtree(target)
    return found


def interval(values):
    """Return the mean and half of its 95 % interval over seeds."""
    values = np.asarray(values)
    half = student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return float(values.mean()), float(half)


def draw(record, file):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for number, name in enumerate(RECIPES):
        for format, marker in zip(FORMATS, "o", strict=True):
            row = record["recipes"][format][name]
            axes.errorbar(row["ratio"][0], -row["drop"][0], row["drop"][1], marker=marker,
                          capsize=3, color=f"C{number}", label=f"{name}, {format}")  # fmt: skip
    axes.axhline(0, color="grey", linewidth=0.8)
    axes.set_xlabel("time in int8 / time in float")
    axes.set_ylabel("change of top-1, points")
    axes.set_title(f"mobilenetv2_035, {record['seeds']} seeds, 95 % intervals")
    axes.legend(fontsize="x-small", ncols=2)
    figure.savefig(file, metadata={"Date": None})


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="runs/int8_budget")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one epoch, two seeds, no record")
    options = parser.parse_args()
    if options.quick:
        options.seeds, options.epochs = 2, 1
    folder = Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    data = create_datamodule(DataConfig(name="digits", image_size=SIDE), batch_size=100)
    data.setup("fit")
    seeds = range(options.seeds)
    found = {
        format: [
            once(folder, f"{format}{seed}",
                 lambda seed=seed, format=format: measured(seed, format, options, data))
            for seed in seeds
        ]
        for format in FORMATS
    }  # fmt: skip
    recipes = {
        format: {
            name: {key: interval([row[name][key] for row in rows])
                   for key in ("drop", "ratio", "snr_db")}
            for name in RECIPES
        }
        for format, rows in found.items()
    }  # fmt: skip
    record = {
        "seeds": options.seeds,
        "epochs": options.epochs,
        "float": [row["biases"]["float"] for row in found["onnx"]],
        "recipes": recipes,
    }
    print(json.dumps(record, indent=1))
    if options.quick:
        return
    (ROOT / "results/methods").mkdir(exist_ok=True)
    (ROOT / "docs/pictures").mkdir(exist_ok=True)
    text = json.dumps(record, indent=1) + "\n"
    (ROOT / "results/methods/int8_budget.json").write_text(text, encoding="utf-8")
    draw(record, ROOT / "docs/pictures/int8_budget.svg")


if __name__ == "__main__":
    main()
