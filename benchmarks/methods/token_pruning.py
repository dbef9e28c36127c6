"""What dropping tokens costs in accuracy and saves in time, without training.

    python benchmarks/methods/token_pruning.py --out runs/token_pruning

trains vit_2_4_32 (64 tokens) on digits with several seeds, and drops tokens after its
first block in four ways: at random, by the attention of the class token, by importance alone, and
by importance and similarity (`zoo.prune_tokens`). Times are paired with the whole model, one
thread, in PyTorch and in ONNX Runtime; those of deit_small_patch16_224 have random weights.
Finished parts are kept in --out. The record goes to results/methods, the picture to docs/pictures.
"""

import json

import protocol
import timm
import torch
from protocol import interval, once

import zoo
from zoo.compression import token_pruning
from zoo.data.create import create_datamodule
from zoo.settings import DataConfig

SIZE = (1, 3, 32, 32)
KEPT = (0.75, 0.5, 0.35)
WAYS = ("random", "class attention", "importance", "importance and similarity")


def random_scores(graph, rounds):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(graph.shape[0], graph.shape[-1], generator=generator)


def class_attention(graph, rounds):
    return graph[:, :, 0].mean(dim=1)


def pruned(model, kept, way, size=SIZE, blocks=(0,)):
    """Return the model with a share of its tokens, chosen in one of `WAYS`."""
    token_pruning.SIMILAR = 0.5 if way == "importance and similarity" else 0.0
    return zoo.prune_tokens(model, dict.fromkeys(blocks, kept), size)


def accuracy(model, data, way):
    """Return top-1 on the validation images in percent."""
    original = token_pruning.importance
    scores = {"random": random_scores, "class attention": class_attention}.get(way, original)
    token_pruning.importance = scores
    try:
        with torch.inference_mode():
            right = [(model(x).argmax(1) == y).float() for x, y in data.val_dataloader()]
    finally:
        token_pruning.importance = original
    return 100 * float(torch.cat(right).mean())


def accuracies(seed, options, data):
    model = protocol.trained("vit_2_4_32", seed, options, SIZE[-1])
    found = {"whole": accuracy(model, data, "whole")}
    for way in WAYS:
        for kept in KEPT:
            found[f"{way} {kept}"] = accuracy(pruned(model, kept, way), data, way)
    return found


def ratio(first, second, size, runtime):
    found = zoo.compare(
        first, second, size, runtime, threads=1, min_runs=20, min_time=0.5, max_time=8
    )
    return {"ratio": found.ratio, "low": found.low, "high": found.high}


def exported(model, size, file):
    from zoo.deploy.pipeline import convert

    convert(model, file, input_size=size, dynamic_batch=False)
    return file


def times(model, kept, size, blocks, folder):
    """Return the time with fewer tokens over that of the whole model, in two runtimes."""
    fewer = pruned(model, kept, WAYS[-1], size, blocks)
    files = [exported(m, size, folder / f"{name}.onnx") for m, name in ((model, "a"), (fewer, "b"))]
    macs = [zoo.count(m, size).macs for m in (model, fewer)]
    return {
        "flops": macs[1] / macs[0],
        "eager": ratio(model, fewer, size, "eager"),
        "onnxruntime": ratio(*files, size, "onnxruntime"),
    }


def draw(record, file):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for way in WAYS:
        rows = [record["drops"][f"{way} {kept}"] for kept in KEPT]
        shares = [record["times"][f"vit_2_4_32 {kept}"]["onnxruntime"]["ratio"] for kept in KEPT]
        axes.errorbar(shares, [m for m, _ in rows], [h for _, h in rows], marker="o", capsize=3,
                      label=way)  # fmt: skip
    axes.axhline(0, color="grey", linewidth=0.8)
    axes.axvline(1, color="grey", linewidth=0.8)
    axes.set_xlabel("time with fewer tokens / time of the whole model (ONNX Runtime)")
    axes.set_ylabel("change of top-1, points")
    axes.set_title(f"vit_2_4_32, {record['seeds']} seeds, 95 % intervals")
    axes.legend()
    figure.savefig(file, metadata={"Date": None})


def main():
    options = protocol.options("token_pruning", __doc__, epochs=6)
    data = create_datamodule(DataConfig(name="digits", image_size=32), batch_size=100)
    data.setup("validate")
    found = [
        once(options.out, f"accuracy{seed}", lambda seed=seed: accuracies(seed, options, data))
        for seed in range(options.seeds)
    ]
    small = protocol.trained("vit_2_4_32", 0, options, SIZE[-1])
    measured = {
        f"vit_2_4_32 {kept}": once(
            options.out,
            f"vit {kept}",
            lambda kept=kept: times(small, kept, SIZE, (0,), options.out),
        )
        for kept in KEPT
    }
    if not options.quick:
        size = (1, 3, 224, 224)
        deit = timm.create_model("deit_small_patch16_224").eval()
        blocks = token_pruning.chosen_blocks(12)
        measured["deit_small_patch16_224 0.75"] = once(
            options.out, "deit", lambda: times(deit, 0.75, size, blocks, options.out)
        )
    drops = {
        name: interval([row[name] - row["whole"] for row in found])
        for name in found[0]
        if name != "whole"
    }
    whole = [row["whole"] for row in found]
    record = {"seeds": options.seeds, "epochs": options.epochs, "whole": whole, "drops": drops,
              "times": measured}  # fmt: skip
    print(json.dumps(record, indent=1))
    if options.quick:
        return
    protocol.write("token_pruning", record)
    draw(record, protocol.PICTURES / "token_pruning.svg")


if __name__ == "__main__":
    main()
