"""`zoo verify`: run published weights, compare with the ledger and with what the sources claim."""

import argparse
import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoo import registry
from zoo.errors import BadInput, BadWeights, OutputsDiffer, first_line, unknown_value

HELP = "run published weights, and record their accuracy and their outputs for one picture"
LOADS_PYTORCH = True  # which takes seconds: the command line says so first

# Relative to the spread of the outputs. Float32 differs by about 1e-6 between machines.
TOLERANCE = 1e-3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("model", help="a name, or name.tag for another of its published files")
    parser.add_argument(
        "--data",
        nargs="+",
        metavar=("NAME", "KEY=VALUE"),
        help="also measure the accuracy, such as --data imagenet root=path/to/imagenet",
    )
    parser.add_argument("--weights", help="the file, if it was fetched by hand")
    parser.add_argument("--ledger", metavar="FILE", help="default: beside the downloaded files")


def run(args: argparse.Namespace) -> None:
    """Verify the weights of a model, and print what was found.

    Raises:
        ZooError: The weights cannot be fetched or do not fit, or their outputs have changed.
    """
    name = args.data[0] if args.data else None
    settings: list[str] = args.data[1:] if args.data else []
    keys: dict[str, Any] = {}
    for word in settings:
        key, _, value = word.partition("=")
        keys[key] = value
    if bad := next((word for word in settings if "=" not in word), None):
        raise BadInput(f"--data {name} {bad}: give settings as key=value, such as root=path")
    verify(args.model, name, weights=args.weights, ledger=args.ledger, **keys)


def verify(
    model: str,
    data: str | None = None,
    *,
    weights: str | None = None,
    ledger: str | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Run published weights, and compare them with the ledger, like `zoo verify`.

    The outputs for one picture are compared with the recorded ones, or recorded if there are none.

    Args:
        model: A name, or `name.tag` for another of its published files.
        data: Name of a data set on which to measure the accuracy, such as `"imagenet"`.
        weights: The file, if it was fetched by hand.
        ledger: The file to record in; None for the one beside the downloaded files.
        **settings: Keys of the group `data`, such as `root`, and `batch_size`.

    Returns:
        The records `outputs` and, with `data`, `accuracy`; see `zoo.reports.ledger`.

    Raises:
        BadInput: A setting is invalid, or the ledger cannot be read or written.
        BadWeights: The file cannot be fetched, or does not fit.
        OutputsDiffer: The outputs are not the recorded ones: the code or the file has changed.
    """
    from zoo.commands import published_file
    from zoo.download import sha256_of
    from zoo.reports import ledger as ledgers

    spec, entry = _entry(model, weights)
    evaluated = None if data is None else _evaluation(spec, entry, data, weights, settings)
    if data is None and settings:
        raise BadInput(f"{next(iter(settings))} has no effect without data; leave it out")
    file = ledgers.own_file() if ledger is None else Path(ledger).expanduser()
    name = f"{spec.name}.{entry['tag']}"
    there = {**ledgers.entries(own=False).get(name, {}), **ledgers.read(file).get(name, {})}
    known = {**ledgers.entries().get(name, {}), **there}
    path, content = _fetched(spec, entry, weights)
    sha256 = sha256_of(path)
    net = published_file.load(spec, entry, content)
    print(f"{name}: {path.name} fits, sha256 {sha256}")
    about = {"date": datetime.date.today().isoformat(), "sha256": sha256}
    found: dict[str, Any] = {}
    outputs = {**about, **_outputs(net, registry.get_spec(name), entry)}
    if "outputs" in known:
        _compare(name, outputs, known["outputs"])
    found["outputs"] = there.get("outputs", outputs)
    if "outputs" not in there:
        ledgers.add(file, name, outputs=outputs)
        print(f"outputs for {ledgers.PICTURE}: recorded in {file}")
    if evaluated is not None:
        found["accuracy"] = {**about, **evaluated()}
        ledgers.add(file, name, accuracy=found["accuracy"])
        print(ledgers.accuracy_in_words(spec.name, found["accuracy"]))
        print(f"recorded in {file}")
    return found


def _entry(model: str, weights: str | None) -> tuple[registry.ModelSpec, dict[str, Any]]:
    """Return a model, and its entry of weights that the name means."""
    from zoo.build import published_entry

    spec = registry.get_spec(model)
    if not registry.is_packaged(model):
        raise BadInput(f"{model} is not a model of this package, which keeps no ledger of it")
    if weights is not None and spec.weights:
        return spec, spec.weights[0]
    return spec, published_entry(spec)


def _fetched(
    spec: registry.ModelSpec, entry: dict[str, Any], weights: str | None
) -> tuple[Path, dict[str, Any]]:
    from zoo.build import fetch_published
    from zoo.weights import read_source

    if weights is None:
        return fetch_published(spec, entry)
    sums = {key: entry[key] for key in ("sha256", "git_sha1") if key in entry}
    return read_source(weights, **sums)


def _outputs(net: Any, spec: registry.ModelSpec, entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return the digest of the outputs for one picture."""
    import numpy as np
    import torch

    from zoo.reports.ledger import PICTURE

    images = _picture(spec)
    with torch.no_grad():
        whole = entry.get("head", True)
        made = net(images) if whole else net.forward_features(images)
    values = made.double().flatten()
    noise = torch.from_numpy(np.random.RandomState(0).randn(values.numel()))  # noqa: NPY002
    top = None
    if whole and spec.task == "classification":
        best = made[0].topk(min(5, made.shape[1]))
        top = [[int(k), _short(v)] for k, v in zip(best.indices, best.values, strict=True)]
    return {
        "picture": PICTURE,
        "shape": list(made.shape),
        "mean": _short(values.mean()),
        "std": _short(values.std(correction=0)),
        "probe": _short((values * noise).sum() / values.numel() ** 0.5),
        "first": [_short(value) for value in values[:8]],
        "top": top,
        "torch": torch.__version__.partition("+")[0],
    }


def _picture(spec: registry.ModelSpec) -> Any:
    """Return the picture as the published weights expect it, 1 C H W."""
    import torch
    from PIL import Image
    from sklearn.datasets import load_sample_image

    from zoo.data.transforms import eval_preparation
    from zoo.inputs import published_input, published_normalisation
    from zoo.reports.ledger import PICTURE
    from zoo.settings import DataConfig

    known = published_input(spec.full_name)
    size = known["size"] or [3, 224, 224]
    if len(size) != 3 or size[0] != 3:
        raise BadInput(f"{spec.name} takes no colour pictures, so it has no outputs to record")
    config = DataConfig(
        image_size=size[1:],
        interpolation=known["interpolation"],
        crop_pct=known["crop_pct"],
        **published_normalisation(spec.full_name),
    )
    images = torch.empty(1, *size)
    eval_preparation(config).prepare_into(images[0], Image.fromarray(load_sample_image(PICTURE)))
    return images


def _short(value: Any) -> float:
    """Return seven digits of a number."""
    return float(f"{float(value):.7g}")


def _compare(name: str, found: dict[str, Any], recorded: dict[str, Any]) -> None:
    """Print that outputs equal the recorded ones.

    Raises:
        OutputsDiffer: They do not.
    """
    pairs = [(found[key], recorded[key]) for key in ("mean", "std", "probe")]
    pairs += list(zip(found["first"], recorded["first"], strict=False))
    worst = max(abs(a - b) for a, b in pairs) / (abs(recorded["std"]) or 1.0)
    same_file = found["sha256"] == recorded["sha256"]
    other = "" if same_file else ", of another file with the same weights"
    if found["shape"] != recorded["shape"] or not worst <= TOLERANCE:
        blamed = "the code has changed since" if same_file else "it is another file"
        raise OutputsDiffer(
            f"the outputs of {name} for {recorded['picture']} differ from those recorded on"
            f" {recorded['date']} by {worst:.1e} of their spread: {blamed} (sha256"
            f" {recorded['sha256'][:8]} then, {found['sha256'][:8]} now)"
        )
    print(
        f"outputs for {recorded['picture']}: equal to those recorded on {recorded['date']}{other}"
        f" (largest difference {worst:.1e} of their spread)"
    )


def _evaluation(
    spec: registry.ModelSpec,
    entry: dict[str, Any],
    data: str,
    weights: str | None,
    settings: dict[str, Any],
) -> Any:
    """Return a function that measures the accuracy; settings are checked at once."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from zoo.commands import eval as evaluation
    from zoo.inputs import published_input
    from zoo.settings import DataConfig, EvalRun, ModelConfig

    settings = {key.removeprefix("data."): value for key, value in settings.items()}
    batch_size = settings.pop("batch_size", 64)
    schema = OmegaConf.structured(DataConfig)
    for key in settings:
        if key not in schema or key == "name":
            raise BadInput(unknown_value("setting", key, sorted(schema), where=f" of data={data}"))
    try:
        words = [f"{key}={value}" for key, value in settings.items() if isinstance(value, str)]
        plain = {key: value for key, value in settings.items() if not isinstance(value, str)}
        merged = OmegaConf.merge(schema, {"name": data}, plain, OmegaConf.from_dotlist(words))
        config: Any = OmegaConf.to_object(merged)
        batch_size = int(batch_size)
    except (OmegaConfBaseException, ValueError) as error:
        raise BadInput(f"data={data}: {first_line(error)}") from error
    if not entry.get("head", True):
        raise BadWeights(f"{spec.name}.{entry['tag']} has no classifier; leave data out")
    if config.image_size is None:
        size = published_input(f"{spec.name}.{entry['tag']}")["size"]
        config.image_size = size and size[1:]
    run = EvalRun(
        model=ModelConfig(name=f"{spec.name}.{entry['tag']}", pretrained=weights is None),
        data=config,
        weights=weights,
        batch_size=batch_size,
    )
    explicit = {"model.name": run.model.name, "data.name": data}
    explicit |= {f"data.{key}": value for key, value in plain.items()}

    def measured() -> dict[str, Any]:
        report = evaluation.run(run, explicit)
        metric = next(key for key in ("top1", "mean_iou", "psnr") if key in report)
        value = report[metric]
        known = value if isinstance(value, Mapping) else {"value": value}
        used = report["preprocessing"]
        return {
            "data": data,
            "images": report["images"],
            "metric": metric,
            "value": _short(known["value"]),
            "low": _short(known["low"]) if "low" in known else None,
            "high": _short(known["high"]) if "high" in known else None,
            "size": list(used["size"]),
            "interpolation": used["interpolation"],
            "crop_pct": used["crop_pct"],
        }

    return measured
