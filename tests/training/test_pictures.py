"""Pictures of evaluations: colours for everybody, titles, and what each row shows."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from zoo.training import pictures


def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return the list to which every figure is added when it is saved."""
    figures: list[Any] = []
    save = pictures._save

    def save_and_keep(figure: Any, path: Path, dpi: int) -> None:
        figures.append(figure)
        save(figure, path, dpi)

    monkeypatch.setattr(pictures, "_save", save_and_keep)
    return figures


def test_the_confusion_matrix_has_a_title_and_a_bar_of_its_height(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = drawn(monkeypatch)
    path = tmp_path / "confusion.png"
    pictures.draw_confusion(path, [[3, 1], [0, 4]], ["a", "b"], "m on d, 8 images, top-1 87.50%")
    axes = figures[0].axes[0]
    assert axes.get_title() == "m on d, 8 images, top-1 87.50%"
    assert [text.get_rotation() for text in axes.get_xticklabels()] == [0, 0]
    figures[0].canvas.draw()
    matrix, bar = (a.get_window_extent() for a in (axes, axes.child_axes[0]))
    assert bar.height == pytest.approx(matrix.height, rel=0.01)
    assert bar.y0 == pytest.approx(matrix.y0, abs=1)
    pictures.draw_confusion(path, [[3, 1], [0, 4]], ["temple roof", "b"])
    assert {text.get_rotation() for text in figures[1].axes[0].get_xticklabels()} == {90}


@pytest.mark.parametrize("count", [2, 8, 21, 40])
def test_class_colours_are_distinct_for_colour_blind_readers(count: int) -> None:
    colors = pictures.class_colors(count)
    assert colors.shape == (count, 3)
    assert torch.equal(colors[:8], torch.tensor(pictures.OKABE_ITO)[:count] / 255)
    grey = torch.tensor([pictures.IGNORED_COLOR])  # means no class
    shown = torch.cat([colors, grey])
    differences = pictures.color_differences(shown, shown) + 1000 * torch.eye(count + 1)
    assert differences.min() > (15 if count <= 8 else 6), "2.3 is just visible"
    red, green = torch.tensor([[0.7, 0.3, 0.0]]), torch.tensor([[0.4, 0.45, 0.0]])
    assert pictures.color_differences(red, green) < 0.5 * torch.cdist(
        *(pictures._perceived(color)[0] for color in (red, green))
    ), "the test would accept red and green"


def test_labels_are_drawn_over_the_image_with_the_iou_of_the_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = drawn(monkeypatch)
    labels = torch.zeros(2, 8, 8, dtype=torch.int64)
    labels[:, :4] = 1
    predictions = labels.clone()
    predictions[1, :2] = 0  # IoU 2/4 of class 1 and 4/6 of class 0
    images = torch.rand(2, 3, 8, 8)
    pictures.draw_labels(tmp_path / "p.png", images, labels, predictions, ["a", "b"], "title")
    captions = [axes.get_xlabel() for axes in figures[0].axes]
    assert captions == ["", "", "mean IoU 1.00", "", "", f"mean IoU {(2 / 4 + 4 / 6) / 2:.2f}"]
    assert figures[0].get_suptitle() == "title"
    over = figures[0].axes[1].images[0].get_array()
    assert np.ptp(over[:4].mean(axis=2)) > 0.05, "the image shows through"
    nothing = torch.full((8, 8), 255)
    assert np.isnan(pictures.mean_iou(nothing, predictions[0]))


def test_rows_of_images_show_a_textured_detail_and_the_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = drawn(monkeypatch)
    torch.manual_seed(0)
    targets = torch.full((3, 3, 96, 96), 0.5)
    targets[1, :, 48:72, 24:48] = torch.rand(3, 24, 24)
    targets[2] = torch.rand(3, 96, 96)
    assert pictures.most_textured(targets, 2) == [1, 2]
    _, rows, columns = pictures._most_textured(targets[1])
    assert (rows, columns) == (slice(48, 72), slice(24, 48))
    small = targets[:, :, ::2, ::2]
    enlarged = {"bicubic": targets, "model": (targets + 0.1).clamp(0, 1)}
    psnr = {name: [1.0, 2.0, 3.0] for name in enlarged}
    pictures.draw_images(tmp_path / "s.png", small, enlarged, targets, psnr, "title")
    names = [axes.get_title() for axes in figures[0].axes[:7]]
    assert names == ["input", "bicubic", "model", "target", "model, detail", "target, detail",
                     "difference"]  # fmt: skip
    assert figures[0].axes[6].get_xlabel() in ("x9", "x10")
    with Image.open(tmp_path / "s.png") as picture:
        assert picture.size[0] > 1000
