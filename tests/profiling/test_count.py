"""The counts of operators and modules, compared with hand calculations."""

import math

import pytest
import timm.layers
import torch
import torch.nn.functional as F
from torch import nn

import zoo
from zoo.counting.count import count, evaluation
from zoo.counting.rules import FREE, SOFTMAX, all_rules


class Call(nn.Module):
    """Calls a function on its input and on tensors, which are buffers."""

    def __init__(self, function, **buffers):
        super().__init__()
        self.function, self.names = function, list(buffers)
        for name, value in buffers.items():
            self.register_buffer(name, value)

    def forward(self, x):
        return self.function(x, *(getattr(self, name) for name in self.names))


# Module, input size, MACs = outputs x kernel size x input channels / groups.
CONVS = {
    "3x3": (nn.Conv2d(3, 8, 3), (2, 3, 10, 12), 2 * 8 * 8 * 10 * 27),
    "padded, stride 2": (nn.Conv2d(3, 8, 3, 2, 1), (1, 3, 11, 13), 8 * 6 * 7 * 27),
    "no bias": (nn.Conv2d(3, 8, 3, bias=False), (1, 3, 5, 5), 8 * 9 * 27),
    "1x1": (nn.Conv2d(6, 4, 1), (1, 6, 5, 7), 4 * 35 * 6),
    "dilated": (nn.Conv2d(3, 4, 3, dilation=2), (1, 3, 9, 9), 4 * 25 * 27),
    "grouped": (nn.Conv2d(8, 4, 3, groups=2), (1, 8, 5, 5), 4 * 9 * 9 * 4),
    "depthwise": (nn.Conv2d(8, 8, 5, groups=8, padding=2), (1, 8, 6, 6), 8 * 36 * 25),
    "non-square kernel": (nn.Conv2d(2, 3, (1, 5)), (1, 2, 4, 9), 3 * 4 * 5 * 10),
    "padding same": (nn.Conv2d(3, 8, 3, padding="same"), (1, 3, 16, 16), 8 * 256 * 27),
    "padding valid": (nn.Conv2d(3, 8, 3, padding="valid"), (1, 3, 16, 16), 8 * 196 * 27),
    "padding same, grouped": (
        nn.Conv1d(4, 6, 3, groups=2, padding="same"),
        (2, 4, 10),
        2 * 6 * 10 * 6,
    ),
    "reflection padding": (
        nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"),
        (1, 2, 4, 4),
        3 * 16 * 18,
    ),
    "1d": (nn.Conv1d(4, 6, 3, groups=2), (2, 4, 10), 2 * 6 * 8 * 6),
    "3d": (nn.Conv3d(2, 3, (1, 3, 3)), (1, 2, 4, 5, 6), 3 * 4 * 3 * 4 * 18),
}
# Module, input size, MACs = inputs x kernel size x output channels / groups, output size.
TRANSPOSED = {
    "2d": (nn.ConvTranspose2d(4, 6, 3, 2), (1, 4, 5, 5), 4 * 25 * 9 * 6, (6, 11, 11)),
    "grouped": (
        nn.ConvTranspose2d(4, 6, 2, 2, groups=2),
        (2, 4, 5, 5),
        2 * 4 * 25 * 4 * 3,
        (12, 10, 10),
    ),
    "1d": (nn.ConvTranspose1d(4, 2, 4, 4), (1, 4, 5), 4 * 5 * 4 * 2, (2, 20)),
}


@pytest.mark.parametrize("kind", CONVS)
def test_convolutions(kind):
    module, shape, macs = CONVS[kind]
    found = count(module, shape)
    assert found.macs == macs
    assert found.flops == 2 * macs, "the bias is part of the accumulation"
    assert found.activations == module(torch.zeros(shape)).numel()
    assert found.params == sum(p.numel() for p in module.parameters())
    assert list(found.by_operator()) == ["conv"]


@pytest.mark.parametrize("kind", TRANSPOSED)
def test_transposed_convolutions(kind):
    module, shape, macs, out = TRANSPOSED[kind]
    found = count(module, shape)
    assert found.macs == macs
    assert found.activations == math.prod(out)


W = torch.ones(5, 7)
MATRICES = {
    "linear": (nn.Linear(5, 7), (2, 3, 4, 5), 24 * 35),
    "linear, no bias": (nn.Linear(5, 7, bias=False), (1, 5), 35),
    "mm": (Call(torch.mm, w=W), (3, 5), 3 * 35),
    "addmm": (Call(lambda x, w: torch.addmm(torch.ones(7), x, w), w=W), (3, 5), 3 * 35),
    "matmul of a batch": (Call(torch.matmul, w=W), (2, 4, 3, 5), 24 * 35),
    "matmul, broadcast": (Call(torch.matmul, w=torch.ones(6, 1, 5, 7)), (4, 3, 5), 6 * 4 * 3 * 35),
    "matmul with a vector": (Call(torch.matmul, w=torch.ones(5)), (4, 3, 5), 12 * 5),
    "bmm": (Call(torch.bmm, w=torch.ones(2, 5, 7)), (2, 3, 5), 2 * 3 * 35),
    "baddbmm": (
        Call(lambda x, w: torch.baddbmm(torch.ones(1), x, w), w=torch.ones(2, 5, 7)),
        (2, 3, 5),
        2 * 3 * 35,
    ),
    "mv": (Call(torch.mv, w=torch.ones(5)), (3, 5), 15),
    "einsum": (Call(lambda x, w: torch.einsum("bnc,cd->bnd", x, w), w=W), (2, 3, 5), 6 * 35),
    "einsum, outer": (Call(lambda x: torch.einsum("bi,bj->bij", x, x)), (2, 5), 2 * 25),
    "einsum, broadcast axis": (
        Call(lambda x, w: torch.einsum("ij,jk->ik", x, w), w=torch.ones(1, 5)),
        (4, 3),
        4 * 3 * 5,
    ),
    "einsum, weights per head": (
        Call(lambda x, w: torch.einsum("b h n d, h d e -> b h n e", x, w), w=torch.ones(4, 5, 6)),
        (2, 4, 3, 5),
        2 * 4 * 3 * 5 * 6,
    ),
}


@pytest.mark.parametrize("kind", MATRICES)
def test_matrix_products(kind):
    module, shape, macs = MATRICES[kind]
    found = count(module, shape)
    assert (found.macs, found.flops) == (macs, 2 * macs)
    assert found.activations == module(torch.zeros(shape)).numel()


# Module and elementwise FLOPs, as defined in zoo/counting/rules.py.
N = 2 * 6 * 4 * 4
ELEMENTWISE = {
    "batch norm": (nn.BatchNorm2d(6), 2 * N),
    "layer norm": (nn.LayerNorm(4), 7 * N),
    "layer norm, no affine": (nn.LayerNorm(4, elementwise_affine=False), 5 * N),
    "group norm": (nn.GroupNorm(2, 6), 7 * N),
    "relu": (nn.ReLU(), N),
    "relu6": (nn.ReLU6(inplace=True), N),
    "gelu": (nn.GELU(), N),
    "add": (Call(lambda x: x + x), N),
    "in place": (Call(lambda x: x.clone().mul_(x)), N),
    "scale": (Call(lambda x: x * 2.0), N),
    "softmax": (nn.Softmax(-1), SOFTMAX * N),
    "mean": (Call(lambda x: x.mean((2, 3))), N),
    "average pool": (nn.AvgPool2d(2), N),
    "average pool, overlapping": (nn.AvgPool2d(3, 1, 1), 9 * N),
    "max pool": (nn.MaxPool2d((2, 1)), N),
    "global pool": (nn.AdaptiveAvgPool2d(1), N),
    "nearest": (nn.Upsample(scale_factor=2, mode="nearest"), 0),
    "bilinear": (nn.Upsample(scale_factor=2, mode="bilinear"), 8 * 4 * N),
    "bicubic": (nn.Upsample(scale_factor=2, mode="bicubic"), 32 * 4 * N),
    "reshape_as": (Call(lambda x: x.reshape_as(x.flatten())), 0),
    "a view": (Call(lambda x: x.flatten(2).transpose(1, 2).reshape(-1)), 0),
    "chunk and cat": (Call(lambda x: torch.cat(x.chunk(2, 1)[::-1], 1)), 0),
    "dropout": (nn.Dropout(0.5), 0),
}


@pytest.mark.parametrize("kind", ELEMENTWISE)
def test_elementwise_operators_have_no_macs(kind):
    module, flops = ELEMENTWISE[kind]
    found = count(module, (2, 6, 4, 4))
    assert (found.macs, found.flops, found.activations) == (0, flops, 0)


def unfused_attention(x, k, v, mask=None):
    scores = (x * 8**-0.5) @ k.transpose(-2, -1)
    return (scores if mask is None else scores + mask).softmax(-1) @ v


@pytest.mark.parametrize("masked", [False, True])
def test_fused_and_unfused_attention_have_equal_counts(masked):
    buffers = {"k": torch.ones(2, 4, 7, 8), "v": torch.ones(2, 4, 7, 16)}
    buffers |= {"mask": torch.ones(4, 5, 7)} if masked else {}
    shape = (2, 4, 5, 8)
    fused = count(Call(F.scaled_dot_product_attention, **buffers), shape)
    plain = count(Call(unfused_attention, **buffers), shape)
    pairs = 2 * 4 * 5 * 7
    assert fused.macs == plain.macs == pairs * (8 + 16)
    assert fused.activations == plain.activations == pairs + 2 * 4 * 5 * 16
    assert fused.flops == plain.flops
    assert fused.flops - 2 * fused.macs == pairs * (SOFTMAX + masked) + math.prod(shape)


class SelfAttention(nn.MultiheadAttention):
    def forward(self, x):
        return super().forward(x, x, x, need_weights=False)[0]


def test_multi_head_attention_of_pytorch():
    enabled = torch.backends.mha.get_fastpath_enabled()
    found = count(SelfAttention(8, 2, batch_first=True), (2, 5, 8))
    projections, pairs = 4 * 8 * 8, 5 * 5 * 8
    assert found.macs == 2 * (5 * projections + 2 * pairs)
    layer = nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, batch_first=True)
    assert count(layer, (2, 5, 8)).macs == 2 * (5 * (projections + 2 * 8 * 16) + 2 * pairs)
    assert torch.backends.mha.get_fastpath_enabled() == enabled


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "mobilenetv2_035"])
def test_counts_do_not_depend_on_global_settings_of_timm(name):
    totals = set()
    try:
        for fused in (True, False):
            timm.layers.set_fused_attn(fused)
            found = zoo.count(zoo.create_model(f"timm/{name}"), (1, 3, 224, 224))
            totals.add((found.macs, found.flops, found.activations))
    finally:
        timm.layers.set_fused_attn(True)
    assert len(totals) == 1


# --- modules ----------------------------------------------------------------------------------


class Shared(nn.Module):
    """A layer that is called twice, one with two names, and one that is never called."""

    def __init__(self):
        super().__init__()
        self.twice = nn.Linear(4, 4)
        self.first = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
        self.second = nn.Linear(8, 4)
        self.again = self.second
        self.never = nn.Linear(100, 100)

    def forward(self, x):
        return self.again(self.first(self.twice(self.twice(x))))


def test_repeated_calls_count_but_parameters_count_once():
    found = count(Shared(), (3, 4))
    table = found.by_module()
    assert found.macs == 3 * (16 + 16 + 32 + 32)
    assert found.params == 20 + 40 + 36 + 10100
    assert table["twice"] == {
        "params": 20,
        "macs": 3 * 32,
        "flops": 2 * 3 * 32,
        "activations": 3 * 8,
    }
    assert table["never"] == {"params": 10100, "macs": 0, "flops": 0, "activations": 0}
    assert table["second"]["macs"] == 3 * 32
    assert table["first"] == {"params": 40, "macs": 96, "flops": 192 + 24, "activations": 24}


def test_counts_of_modules_add_up():
    model = zoo.create_model("efficientformer_l1")
    found = count(model, (1, 3, 64, 64))
    table = found.by_module()
    assert table[""] == {
        "params": found.params,
        "macs": found.macs,
        "flops": found.flops,
        "activations": found.activations,
    }
    for name, module in model.named_modules():
        inside = [f"{name}.{child}".lstrip(".") for child, _ in module.named_children()]
        for key in ("macs", "flops", "activations", "params"):
            total = sum(table[child][key] for child in inside)
            own = sum(p.numel() for p in module.parameters(recurse=False)) if key == "params" else 0
            assert table[name][key] >= total + own
            if key in ("macs", "params") and inside and "attention" not in name:
                assert table[name][key] == total + own, f"{key} of {name}"
    assert set(found.by_module(depth=1)) == {"", "stem", "stages", "norm", "head"}
    assert found.by_module(depth=0).keys() == {""}


def test_counts_of_operators_add_up():
    found = count(zoo.create_model("efficientformer_l1"), (1, 3, 64, 64))
    table = found.by_operator()
    for key in ("macs", "flops", "activations"):
        assert sum(row[key] for row in table.values()) == getattr(found, key)
    flops = [row["flops"] for row in table.values()]
    assert flops == sorted(flops, reverse=True)
    assert {"conv", "linear", "attention", "pool", "layer_norm"} <= table.keys()


def test_counts_are_proportional_to_the_batch_size():
    model = zoo.create_model("mobilenetv2_035")
    one, three = (count(model, (batch, 3, 64, 64)) for batch in (1, 3))
    assert (three.macs, three.flops) == (3 * one.macs, 3 * one.flops)
    assert three.params == one.params


def test_counts_state_whether_the_model_is_fused():
    model = zoo.create_model("mobilenetv2_035").eval()
    assert not count(model, (1, 3, 32, 32)).fused
    assert count(zoo.reparameterize(model), (1, 3, 32, 32)).fused


# --- strictness -------------------------------------------------------------------------------


@torch.library.custom_op("zoo_tests::twice", mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor:
    return x * 2


@twice.register_fake
def _(x):
    return torch.empty_like(x)


class Own(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, grad):
        return grad * 2


UNKNOWN = {
    "zoo_tests::twice": twice,
    "aten::fft_hfft": torch.fft.hfft,
    "aten::svd": lambda x: torch.svd(x)[1],
    "Own": Own.apply,
    "aten::cdist": lambda x: torch.cdist(x, x),
}


@pytest.mark.parametrize("operator", UNKNOWN)
def test_an_unknown_operator_is_an_error_that_names_its_module(operator):
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.ReLU(), Call(UNKNOWN[operator])))
    with pytest.raises(zoo.UncountedOperator, match=r"rules\.py") as caught:
        count(model, (4, 4))
    assert operator in str(caught.value)
    assert " in 1.1" in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(zoo.UncountedOperator, match="in the model itself"):
        count(Call(UNKNOWN[operator]), (4, 4))


@pytest.mark.parametrize("equation", ["...i,ij->...j", "i,j,k->ijk"])
def test_unsupported_equations_of_einsum(equation):
    operands = equation.split("->")[0].count(",")
    module = Call(lambda x, w: torch.einsum(equation, x[0], *[w] * operands), w=torch.ones(3, 3))
    if operands == 2:
        module = Call(lambda x: torch.einsum(equation, x[0], x[0], x[0]))
    with pytest.raises(zoo.UncountedOperator, match="einsum"):
        count(module, (2, 3))


def test_every_rule_belongs_to_an_operator_of_pytorch():
    for name in all_rules():
        namespace, _, operator = name.partition("::")
        assert namespace
        known = hasattr(getattr(torch.ops, namespace), operator.removesuffix("_"))
        in_place = operator.endswith("_") and not hasattr(torch.ops.aten, operator)
        assert known or in_place or operator in TRACED_ONLY, name
    assert not {"aten::add", "aten::mul", "aten::_convolution", "aten::matmul"} & FREE


# Operators that exist only in traces.
TRACED_ONLY = {
    *("Int", "Float", "Bool", "IntImplicit", "FloatImplicit", "ScalarImplicit"),
    *("__and__", "__or__", "__contains__", "__is__", "format", "list"),
}


@pytest.mark.parametrize(
    "size",
    [(1,), (), "abc", 224, None, (1, 3, 0, 4), (1, 3, True, 4), (1.0, 3, 4, 4), (1, -3, 4, 4)],
)
def test_invalid_input_sizes(size):
    with pytest.raises(zoo.BadInput, match="input_size="):
        count(nn.ReLU(), size)


@pytest.mark.parametrize("error", [RuntimeError, AssertionError, TypeError, IndexError, KeyError])
def test_an_error_of_the_model_is_reported(error):
    def fail(x):
        raise error("too\nlarge")

    with pytest.raises(zoo.BadInput, match=r"cannot run on \(1, 4\)") as caught:
        count(Call(fail), (1, 4))
    assert "\n" not in str(caught.value)
    with pytest.raises(zoo.BadInput, match="to have 3 channels, but got 4"):
        count(nn.Conv2d(3, 4, 1), (1, 4, 5, 5))


# --- side effects -----------------------------------------------------------------------------


def test_counting_changes_nothing():
    model = zoo.create_model("efficientformer_l1", drop_path_rate=0.5).train()
    model.stages[1].eval()
    called = []
    model.register_forward_hook(lambda *_: called.append(1))
    modes = [module.training for module in model.modules()]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    random = torch.get_rng_state()
    first = count(model, (1, 3, 64, 64))
    assert [module.training for module in model.modules()] == modes
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()] == hooks
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.is_grad_enabled()
    assert count(model.eval(), (1, 3, 64, 64)) == first


def test_modes_are_restored_after_an_error():
    model = nn.Sequential(nn.Dropout(), nn.Conv2d(3, 4, 1)).train()
    with pytest.raises(zoo.BadInput):
        count(model, (1, 4, 5, 5))
    assert model.training
    assert model[0].training
    with pytest.raises(RuntimeError), evaluation(model):
        raise RuntimeError
    assert model[0].training


def test_a_model_on_the_meta_device_is_refused():
    with torch.device("meta"):
        model = nn.Linear(3, 3)
    with pytest.raises(zoo.BadInput, match="meta device"):
        count(model, (1, 3))
    assert count(model.to_empty(device="cpu"), (1, 3)).macs == 9


def test_other_dtypes_and_outputs():
    model = zoo.create_model("mobilenetv2_035")
    expected = count(model, (1, 3, 32, 32)).macs
    assert count(model.double(), (1, 3, 32, 32)).macs == expected
    assert count(model.bfloat16(), (1, 3, 32, 32)).macs == expected
    pyramid = zoo.create_model("mobilenetv2_035", features_only=True)
    assert 0 < count(pyramid, (1, 3, 32, 32)).macs < expected
    assert count(Call(lambda x: {"a": x @ x, "b": (x, x)}), (4, 4)).macs == 64
