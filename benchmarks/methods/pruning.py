"""Compare ways to prune MobileNetV2 to 0.7 of its latency, on digits of 32 pixels.

    python benchmarks/methods/pruning.py            # one seed; about 6 minutes on one core
    python benchmarks/methods/pruning.py --quick    # one short seed, to see that it runs

Every pruned network is trained further, and compared with a network of the same widths that starts
from random weights and sees as many images, and with the next smaller member of the family. A run
that was interrupted continues. Writes results/methods/pruning.json and the picture of
docs/methods/pruning.md.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch

import zoo
from zoo.compression.calibration import calibration
from zoo.data.create import create_datamodule
from zoo.errors import BadInput
from zoo.narrowing import places
from zoo.pruning.prune import prune
from zoo.pruning.table import LatencyTable, MachineTimer, measure_table
from zoo.settings import DataConfig, PruneConfig
from zoo.training import checkpoint

ROOT = Path(__file__).parents[2]
MODEL, MEMBER = "mobilenetv2_050", "mobilenetv2_035"
SIDE = 32
SIZE = (1, 3, SIDE, SIDE)
SHARE = 0.7  # of the latency of the whole model
RUNTIME = "onnxruntime"
WAYS = ("latency", "uniform", "global")


def train(seed: int, epochs: int, out: Path, limit: int | None, **more: Any) -> tuple[Path, float]:
    """Train a model and return its folder and its top-1 accuracy after the last epoch."""
    wanted = more.get("model.kwargs", {}).get("widths")
    for done in sorted(out.glob("*/checkpoints/last.ckpt")):
        content = torch.load(done, weights_only=True)
        fits = "checkpoint_path" in more or content["model"].get("widths") == wanted
        if content["progress"]["epoch"] == epochs and fits:
            return done.parents[1], content["metrics"]["val/top1"]
    run = zoo.train(
        **{"model": MODEL, **more},
        data="digits",
        image_size=SIDE,
        epochs=epochs,
        batch_size=32,
        seed=seed,
        limit_train_batches=limit,
        loggers=["csv"],
        progress=False,
        **{"train.out": out, "data.num_workers": 0},
    )
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    return run, content["metrics"]["val/top1"]


def pruned_run(base: Path, way: str, target: float, table: LatencyTable, out: Path) -> dict:
    """Prune the last weights of a run; return what was found, and where the checkpoint is."""
    content = torch.load(base / "checkpoints" / "last.ckpt", weights_only=True)
    model = zoo.create_model(**content["model"]).eval()
    model.load_state_dict(content["state_dict"])
    data = create_datamodule(DataConfig(name="digits", image_size=SIDE), batch_size=64)
    data.setup("fit")
    settings = PruneConfig(latency_ms=target, runtime=RUNTIME, allocation=way)
    try:
        found = prune(
            model,
            SIZE,
            settings,
            MachineTimer(RUNTIME, 1),
            lambda: calibration(data, settings.images),
            torch.nn.functional.cross_entropy,
            table,
        )
    except BadInput as error:
        return {"refused": str(error)}
    entries = {key: content[key] for key in ("data", "versions")}
    arguments = {**content["model"], "widths": found.widths}
    file = out / f"{way}.ckpt"
    state = found.model.state_dict()
    checkpoint.save({"state_dict": state, "model": arguments, **entries}, file)
    comparison = found.comparison
    return {
        "file": str(file),
        "widths": found.widths,
        "ratio": comparison.ratio,
        "interval": [comparison.low, comparison.high],
        "params": sum(p.numel() for p in found.model.parameters()),
    }


def seed_rows(seed: int, epochs: int, more: int, limit: int | None, out: Path) -> list[dict]:
    """Return one row for each network of a seed."""
    folder = out / f"seed{seed}"
    base, top1 = train(seed, epochs, folder / "base", limit)
    whole = zoo.create_model(MODEL, num_classes=10).eval()
    timer = MachineTimer(RUNTIME, 1)
    points_file = out / "table.json"
    if points_file.exists():
        table = LatencyTable(json.loads(points_file.read_text()))
    else:
        table = measure_table(whole, places(whole), SIZE, timer)
        points_file.write_text(json.dumps(table.points))
    target = SHARE * timer.ms(whole, SIZE)
    rows = [{"seed": seed, "way": "whole", "top1": top1, "ratio": 1.0}]
    kept = None
    for way in WAYS:
        found = pruned_run(base, way, target, table, folder)
        if "refused" in found:
            rows.append({"seed": seed, "way": way, **found})
            continue
        file, widths = found.pop("file"), found.pop("widths")
        _, top1 = train(seed, more, folder / way, limit, checkpoint_path=file, warmup_epochs=0)
        rows.append({"seed": seed, "way": way, "top1": top1, **found})
        if way == "latency":
            kept = widths, found
    if kept is not None:
        widths, found = kept
        kwargs = {"model.kwargs": {"widths": widths}}
        _, top1 = train(seed, epochs + more, folder / "scratch", limit, **kwargs)
        rows.append({"seed": seed, "way": "same widths, from scratch", "top1": top1, **found})
    member = zoo.create_model(MEMBER, num_classes=10).eval()
    comparison = timer.compare(whole, member, SIZE)
    _, top1 = train(seed, epochs + more, folder / "member", limit, model=MEMBER)
    found = {"ratio": comparison.ratio, "interval": [comparison.low, comparison.high]}
    rows.append({"seed": seed, "way": MEMBER, "top1": top1, **found})
    return rows


def draw(rows: list[dict], file: Path) -> None:
    """Draw accuracy over latency: a dot per seed, and the mean with its 95 % interval."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from scipy import stats

    figure, axes = pyplot.subplots(figsize=(7, 4.2))
    for way in dict.fromkeys(row["way"] for row in rows):
        own = [row for row in rows if row["way"] == way and "top1" in row]
        if not own:
            continue
        x, y = ([row[key] * scale for row in own] for key, scale in (("ratio", 1), ("top1", 100)))
        half = 0.0
        if len(y) > 1:
            spread = statistics.stdev(y) / len(y) ** 0.5
            half = float(stats.t.ppf(0.975, len(y) - 1)) * spread
        line = axes.errorbar(statistics.mean(x), statistics.mean(y), half, fmt="o", label=way)
        axes.scatter(x, y, s=9, alpha=0.5, color=line[0].get_color())
    axes.set_xlabel(f"latency of one image in {RUNTIME}, relative to {MODEL}")
    axes.set_ylabel("top-1, %")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(file, dpi=110)


def main() -> None:
    """Run what is missing, and write the record and the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=8, help="of the whole model")
    parser.add_argument("--more", type=int, default=3, help="epochs after pruning")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "methods" / "pruning")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    limit = None
    if args.quick:
        args.seeds, args.epochs, args.more, limit = 1, 1, 1, 2
    args.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for seed in range(args.seeds):
        part = args.out / f"seed{seed}.json"
        if not part.exists():
            found = seed_rows(seed, args.epochs, args.more, limit, args.out)
            part.write_text(json.dumps(found))
        rows += json.loads(part.read_text())
    if args.quick:
        print(json.dumps(rows, indent=1))
        return
    record = {"epochs": args.epochs, "more": args.more, "share": SHARE, "rows": rows}
    (ROOT / "results" / "methods" / "pruning.json").write_text(json.dumps(record, indent=1) + "\n")
    draw(rows, ROOT / "docs" / "pictures" / "pruning.png")


if __name__ == "__main__":
    main()
