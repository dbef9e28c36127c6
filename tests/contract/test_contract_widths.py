"""Groups of every family: a unit that is taken out has no effect left, and nothing else goes."""

import pytest
import torch
from support import SMALLEST, fresh, inputs, quick, shaken, tensors

from zoo.blocks.widths import multiply
from zoo.narrowing import cut, places, widths_of

# Their widths are those of the residual stream or of a concatenation.
WITHOUT = ("ese_vovnet", "extremec3net", "phresnet", "simplenet", "sinet")
# Their blocks have the same code as those of another model of the list.
ALIKE = ("lightm_unet_3d_8", "wavemix_seg_192_16_l3_cityscapes", "wavemix_sisr_144_4_l1")
NAMES = [name for name in SMALLEST if not name.startswith(WITHOUT) and name not in ALIKE]


@pytest.mark.parametrize("name", NAMES)
def test_a_model_without_units_computes_what_it_does_with_zeros(name: str) -> None:
    model = fresh(name, torch.float64, **quick(name)).eval()
    x = inputs(name, batch=1, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    found = places(model)
    if not found:
        pytest.skip("no block declares hidden widths or heads")
    gone = {
        key: torch.randperm(place.group.width, generator=generator)[: place.group.width // 2]
        for key, place in found.items()
    }
    kept = {
        key: [unit for unit in range(found[key].group.width) if unit not in units]
        for key, units in gone.items()
    }
    narrower = cut(model, kept)
    with torch.no_grad():
        whole = tensors(model(x))
        for key, units in gone.items():
            multiply(found[key].block, found[key].group, units, 0.0)
        zeroed = tensors(model(x))
        narrow = tensors(narrower(x))
    for a, b, c in zip(narrow, zeroed, whole, strict=True):
        assert (a - b).abs().max() < 1e-10 * max(1.0, float(b.abs().max()))
        assert not torch.equal(b, c)
    assert widths_of(narrower) == {key: len(units) for key, units in kept.items()}


def test_only_families_without_widths_inside_blocks_are_left_out() -> None:
    declaring = [name for name in SMALLEST if widths_of(shaken(name, **quick(name)))]
    assert not any(name.startswith(WITHOUT) for name in declaring)
    assert len(declaring) >= 24
