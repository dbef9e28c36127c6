"""The model card of a repository on the hub, generated from the records of a run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from zoo import registry
from zoo.deploy.schema import TO_IMAGES
from zoo.display import quantity
from zoo.hub import BRIDGED
from zoo.publication.run_records import Evaluation
from zoo.reports.markdown import escape, grid

_NAMED = 100  # classes; further ones are only in config.json
_PIPELINES = {
    "classification": "image-classification",
    "multi-label": "image-classification",
    "segmentation": "image-segmentation",
    "super-resolution": "image-to-image",
    "detection": "object-detection",
    "retrieval": "image-feature-extraction",
    "restoration": "image-to-image",
}
_HF_METRICS = {"top1": "accuracy", "mean_iou": "mean_iou", "psnr": "psnr", "map": "mean_ap"}


@dataclass(frozen=True)
class Card:
    """What a card says.

    Attributes:
        repository: `owner/name`.
        model: Name of the model for `zoo.create_model`.
        architecture: Its name in `config.json`.
        task: `"classification"`, ...
        params: Number of parameters.
        preprocessing: Of evaluation.
        class_names: Of each class, or None.
        data: Name of the training data; "" if unknown.
        splits: Number of images by split, and of each class if it is known.
        evaluation: The accuracy.
        recipe: Settings of training.
        started_from: The published weights that training started from; "" for none.
        latencies: Rows of measured latencies, and on what they were measured.
        pictures: Paths in the repository.
        licence: An identifier of the hub; None if it is not stated.
        has_licence_file: Whether the repository has a file LICENSE.
        versions: Of the packages.
    """

    repository: str
    model: str
    architecture: str
    task: str
    params: int
    preprocessing: Mapping[str, Any]
    class_names: Sequence[str] | None
    data: str
    splits: Mapping[str, Any]
    evaluation: Evaluation
    recipe: Mapping[str, Any]
    started_from: str
    latencies: tuple[list[list[str]], str]
    pictures: Sequence[str]
    licence: str | None
    has_licence_file: bool
    versions: Mapping[str, Any] = field(default_factory=dict)

    @property
    def in_timm(self) -> bool:
        """Whether timm builds the architecture without this package."""
        return not self.architecture.startswith(BRIDGED)

    @property
    def _is_reversed(self) -> bool:
        return self.preprocessing.get("channel_order") == "BGR"

    def text(self) -> str:
        """Return the text of README.md."""
        parts = [f"---\n{self._metadata()}\n---", f"# {escape(self.repository)}", self._opening()]
        parts += ["## Use", self._use()]
        if self.evaluation.metrics:
            parts += ["## Accuracy", *self._accuracy()]
        parts += ["## Data", *self._data(), "## Recipe", *self._recipe()]
        rows, where = self.latencies
        if rows:
            head = ["runtime", "form", "images", "median ms", "95 % interval"]
            parts += ["## Latency", f"Measured on {escape(where)}.", grid(head, rows)]
        if self.pictures:
            parts.append("## Pictures")
            parts += [f"![{escape(path)}]({path})" for path in self.pictures]
        parts += ["## Licence", self._licence()]
        return "\n\n".join(parts) + "\n"

    def _metadata(self) -> str:
        """Return the YAML at the top, which the hub reads."""
        from huggingface_hub import EvalResult, ModelCardData

        pipeline = _PIPELINES[self.task]
        results = [
            EvalResult(
                task_type=pipeline,
                dataset_type=self.data or "unknown",
                dataset_name=self.data or "unknown",
                dataset_split="validation",
                metric_type=_HF_METRICS[metric.key],
                metric_name=metric.words,
                metric_value=round(metric.value, 6),
            )
            for metric in self.evaluation.metrics
            if metric.key in _HF_METRICS
        ]
        more: dict[str, Any] = {}
        if self.has_licence_file:
            more = {"license_name": "licence-file", "license_link": "LICENSE"}
        data = ModelCardData(
            license=self.licence or ("other" if self.has_licence_file else "unknown"),
            library_name="timm" if self.task == "classification" else "zoo",
            tags=[pipeline, "zoo", self.model],
            pipeline_tag=pipeline,
            model_name=self.repository.partition("/")[2],
            eval_results=results or None,
            **more,
        )
        return data.to_yaml().strip()

    def _opening(self) -> str:
        name = self.model.removeprefix(registry.TIMM)
        paper = registry.get_spec(self.model).facts.get("paper") or {}
        about = ", ".join(str(paper[key]) for key in ("title", "year") if key in paper)
        source = f" ({escape(about)})" if about else ""
        size = " x ".join(map(str, self.preprocessing["size"][1:]))
        lines = [
            f"`{name}`{source} for {self.task}, trained with zoo.",
            f"{quantity(self.params)} parameters; images of {size} pixels,"
            f" {self.preprocessing['size'][0]} channels.",
        ]
        if self.class_names and len(self.class_names) <= _NAMED:
            names = ", ".join(map(escape, self.class_names))
            lines.append(f"{len(self.class_names)} classes: {names}.")
        elif self.class_names:
            lines.append(f"{len(self.class_names)} classes; their names are in `config.json`.")
        return "\n".join(lines)

    def _use(self) -> str:
        name = f"hf-hub:{self.repository}"
        lines = ["```python", "import zoo", "", f'model = zoo.create_model("{name}").eval()', "```"]
        if self.task == "classification":
            lines += ["", "With timm:", "", "```python", "import timm"]
            bridge = "import zoo.timm_bridge  # the architecture is not part of timm"
            lines += [] if self.in_timm else [bridge]
            lines += ["", f'model = timm.create_model("{name}", pretrained=True).eval()', "```"]
        if self.task not in TO_IMAGES:
            gallery = " --gallery folder" if self.task == "retrieval" else ""
            command = f"zoo predict {name} photo.jpg{gallery}"
            lines += ["", "On pictures:", "", "```bash", command, "```"]
        statistics = {key: self.preprocessing[key] for key in ("mean", "std")}
        crop, how = self.preprocessing["crop_pct"], self.preprocessing["interpolation"]
        lines += ["", f"Preprocessing: {how}, crop {crop:g}, mean {statistics['mean']}, std"]
        order = " in the order blue, green, red" if self._is_reversed else ""
        lines[-1] += f" {statistics['std']} of values in 0..1{order}."
        return "\n".join(lines)

    def _accuracy(self) -> list[str]:
        images = self.evaluation.images
        of = f" of {images} images" if images else ""
        on = f"On the validation split{of} of {escape(self.data) or 'unnamed data'}."
        if self.evaluation.during_training:
            on += " This validation also chose the checkpoint, so it is a little too good."
        rows = [metric.cells() for metric in self.evaluation.metrics]
        return [on, grid(["metric", "value", "95 % interval"], rows)]

    def _data(self) -> list[str]:
        if not self.data:
            return ["Not recorded."]
        rows = []
        for split, entry in self.splits.items():
            counts = entry.get("classes") or []
            each = f"{min(counts)} to {max(counts)}" if counts else ""
            rows.append([split, str(entry.get("images", "")), each])
        table = [grid(["split", "images", "images a class"], rows)] if rows else []
        return [f"`{escape(self.data)}`", *table]

    def _recipe(self) -> list[str]:
        start = f"Started from {escape(self.started_from)}." if self.started_from else ""
        if not self.recipe:
            return [start or "Not recorded."]
        rows = [[f"{key}", str(value)] for key, value in self.recipe.items()]
        versions = {k: v for k, v in self.versions.items() if k in ("torch", "timm", "zoo-vision")}
        made_with = ", ".join(f"{key} {value}" for key, value in versions.items())
        parts = [start, grid(["setting", "value"], rows), escape(made_with)]
        return [part for part in parts if part]

    def _licence(self) -> str:
        lines = []
        if self.has_licence_file:
            lines.append("See [LICENSE](LICENSE).")
        elif self.licence:
            lines.append(f"{escape(self.licence)}.")
        else:
            lines.append("Its authors state no licence for these weights.")
        if self.started_from:
            lines.append(f"Training started from {escape(self.started_from)}.")
        return "\n".join(lines)
