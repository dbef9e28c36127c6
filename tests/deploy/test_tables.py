"""Position tables are resampled for the size of the artefact."""

import torch
from torch import nn

from zoo.blocks.positions import LearnedPositionEmbedding
from zoo.deploy.tables import resample_tables


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.once = LearnedPositionEmbedding(
            4, (6, 6), prefix=1, std=1.0, mode="bicubic", antialias=True
        )
        self.twice = LearnedPositionEmbedding(4, (6, 6), std=1.0)

    def forward(self, x):
        height, width = x.shape[2:]
        y = x.mean() + self.once(height, width)
        return torch.cat([y, self.twice(height, width), self.twice(width, height)], dim=1)


def test_tables_are_resampled_for_the_images():
    model, x = Net().eval(), torch.randn(1, 3, 4, 5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    made = resample_tables(model, x)
    assert made.once.grid == (4, 5)
    assert made.once.table.shape == (1, 21, 4)
    assert made.twice.grid == (6, 6), "a table read at two sizes is left unchanged"
    torch.testing.assert_close(made(x), model(x), rtol=0, atol=0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_model_without_tables_is_returned_itself():
    model = nn.Conv2d(3, 4, 3)
    assert resample_tables(model, torch.randn(1, 3, 8, 8)) is model
