"""The task of finding images of the same place: metrics, report, and how it is shown."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from rich.console import Console
from torch import Tensor, nn
from torchmetrics import CatMetric
from torchmetrics.functional.retrieval import retrieval_hit_rate

from zoo.data.retrieval import QUERY
from zoo.errors import BadInput
from zoo.settings import TrainConfig
from zoo.training import pair_losses as pair_losses  # registers the loss of this task
from zoo.training import pictures, report_files
from zoo.training.tasks import DenseTask, Forward, Meter, Result, denormalized, predict

RANKS = (1, 5, 10)
QUERIES_DRAWN, FOUND_DRAWN = 6, 4
FRAME = 3  # pixels around a drawn reference
RIGHT, WRONG = (0.0, 0.62, 0.45), (0.84, 0.37, 0.0)  # colours of the frame


@dataclass
class RetrievalResult(Result):
    """How often the references nearest to a query show its place.

    Attributes:
        images: Number of images, queries and references.
        queries: Number of queries.
        recall: For each of `RANKS`, the share of queries with a reference of their place among so
            many nearest ones.
        rows: For each query its place, the nearest reference's place, and their similarity.
    """

    images: int
    queries: int
    recall: dict[int, float]
    rows: list[dict[str, float]] = field(default_factory=list)

    @property
    def score(self) -> float:
        return self.recall[1]

    def metrics(self) -> dict[str, float]:
        return {f"val/recall_{rank}": value for rank, value in self.recall.items()}

    def summary(self) -> str:
        return ", ".join(f"recall@{rank} {value:.2%}" for rank, value in self.recall.items())


class RetrievalMeter(Meter):
    """Collects embeddings N D and targets N 2 of all batches and processes."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = CatMetric(nan_strategy="disable")
        self.targets = CatMetric(nan_strategy="disable")

    def update(self, images: Tensor, outputs: Tensor, targets: Tensor) -> None:
        self.embeddings.update(nn.functional.normalize(outputs, dim=1))
        self.targets.update(targets)

    def compute(self) -> RetrievalResult:
        embeddings: Any = self.embeddings.compute()
        targets: Any = self.targets.compute()
        places, kinds = targets.long().unbind(dim=1)
        is_query = kinds == QUERY
        if is_query.all() or not is_query.any():
            what = "reference" if is_query.all() else "query"
            raise BadInput(
                f"there is no {what} in {len(places)} validation images; raise"
                " train.limit_val_batches"
            )
        similarity = embeddings[is_query] @ embeddings[~is_query].T
        same = places[is_query][:, None] == places[~is_query]
        pairs = list(zip(similarity.cpu(), same.cpu(), strict=True))
        recall = {
            rank: sum(float(retrieval_hit_rate(*pair, top_k=rank)) for pair in pairs) / len(pairs)
            for rank in RANKS
        }
        best = similarity.max(dim=1)
        columns = (places[is_query], places[~is_query][best.indices], best.values)
        rows = [
            {"place": place, "nearest": nearest, "similarity": value}
            for place, nearest, value in zip(*(c.tolist() for c in columns), strict=True)
        ]
        return RetrievalResult(len(places), len(same), recall, rows)


class Retrieval(DenseTask):
    """Embeds images so that those of one place are similar."""

    name: ClassVar[str] = "retrieval"
    loss: ClassVar[str] = "multi-similarity"
    selectable: ClassVar[tuple[str, ...]] = tuple(f"recall_{rank}" for rank in RANKS)

    def format_score(self, score: float) -> str:
        return f"recall@1 {score:.2%}"

    def describe_output(self, data: Any) -> str:
        return f"embeddings, {data.num_classes} places"

    def meter(self, data: Any) -> RetrievalMeter:
        return RetrievalMeter()

    def check_settings(self, train: TrainConfig) -> None:
        """Raise `BadInput` for settings that apply only to classes."""
        super().check_settings(train)
        for key, is_set in (("qat", train.qat), ("label_smoothing", train.label_smoothing)):
            if is_set:
                value = getattr(train, key)
                raise BadInput(
                    f"train.{key}={value} is not supported for {self.name}; leave it out"
                )

    def report(self, result: RetrievalResult, data: Any) -> dict[str, Any]:
        recall = {f"recall_{rank}": value for rank, value in result.recall.items()}
        return {"images": result.images, "queries": result.queries, **recall, "rows": result.rows}

    def show(self, console: Console, title: str, report: dict[str, Any]) -> None:
        console.print(title, markup=False)
        values = ", ".join(f"recall@{rank} {report[f'recall_{rank}']:.2%}" for rank in RANKS)
        counts = f"{report['queries']} queries, {report['images'] - report['queries']} references"
        console.print(f"{values} ({counts})", markup=False)

    def write(self, folder: Path, report: dict[str, Any]) -> None:
        rows = [{"query": number, **row} for number, row in enumerate(report["rows"])]
        report_files.write_table(folder / "queries.csv", rows)

    def draw(
        self, folder: Path, model: Forward, data: Any, device: torch.device, title: str = ""
    ) -> None:
        """Draw `predictions.png`: columns of queries and of the references nearest to them."""
        shown, embeddings, targets = [], [], []
        for images, batch_targets in data.val_dataloader():
            shown.append(denormalized(data, images))
            embeddings.append(predict(model, images, device))
            targets.append(batch_targets)
        images, places, kinds = torch.cat(shown), *torch.cat(targets).unbind(dim=1)
        vectors = nn.functional.normalize(torch.cat(embeddings), dim=1)
        queries, references = (kinds == QUERY).nonzero()[:, 0], (kinds != QUERY).nonzero()[:, 0]
        queries = queries[:: max(1, len(queries) // QUERIES_DRAWN)][:QUERIES_DRAWN]
        count = min(FOUND_DRAWN, len(references))
        order = (vectors[queries] @ vectors[references].T).topk(count, dim=1).indices
        nearest = references[order]
        columns = {"query": [_rgb(images[i]) for i in queries]}
        for rank in range(count):
            columns["nearest" if rank == 0 else f"{rank + 1}."] = [
                _framed(images[j], RIGHT if places[i] == places[j] else WRONG)
                for i, j in zip(queries, nearest[:, rank], strict=True)
            ]
        pictures.draw_columns(folder / "predictions.png", columns, title)


def _rgb(image: Tensor) -> Tensor:
    """Return an image C H W with values in 0..1 as H W 3."""
    return image.clamp(0, 1).expand(3, -1, -1).permute(1, 2, 0)


def _framed(image: Tensor, colour: tuple[float, float, float]) -> Tensor:
    """Return an image C H W as H W 3 with a frame over its border."""
    framed = torch.tensor(colour).expand(*image.shape[1:], 3).clone()
    inside = slice(FRAME, -FRAME)
    framed[inside, inside] = _rgb(image)[inside, inside]
    return framed


TASK = Retrieval()
