"""What int8 costs in accuracy and saves in time, with and without repairs.

    python benchmarks/methods/int8_budget.py --out runs/int8_budget

trains mobilenetv2_035 on digits with several seeds, writes int8 files by several recipes
for ONNX Runtime, and evaluates them on the 360 validation images. Drops are paired per image, and
the interval is over the seeds; times are paired with the float file. Finished parts are kept in
--out. The record goes to results/methods, the picture to docs/pictures.
"""

import json
import shutil

import protocol
from protocol import interval, once

import zoo
from zoo.compression import calibration
from zoo.data.create import create_datamodule
from zoo.settings import DataConfig

SIDE = 32
RECIPES = {
    "nearest": {"repairs": []},
    "biases": {"repairs": ["biases"]},
    "rounding": {"repairs": ["rounding", "biases"]},
}
FORMATS = ("onnx",)


def measured(seed, format, options, data):
    """Return drop and time of each recipe for one seed."""
    model = protocol.trained("mobilenetv2_035", seed, options, SIDE)
    batches = calibration.calibration(data, 64)
    found = {}
    for name, recipe in RECIPES.items():
        target = options.out / "artefact"
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
    options = protocol.options("int8_budget", __doc__, epochs=3)
    data = create_datamodule(DataConfig(name="digits", image_size=SIDE), batch_size=100)
    data.setup("fit")
    seeds = range(options.seeds)
    found = {
        format: [
            once(options.out, f"{format}{seed}",
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
    protocol.write("int8_budget", record)
    draw(record, protocol.PICTURES / "int8_budget.svg")


if __name__ == "__main__":
    main()
