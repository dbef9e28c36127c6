"""The selective scan as an operator: compiled, exported, scripted, and without Numba."""

import subprocess

import numpy as np
import pytest
import torch
from functorch.compile import make_boxed_func
from scan_cases import Case, definition, relative_error
from torch._dynamo.backends.common import aot_autograd
from torch.fx.experimental.proxy_tensor import make_fx

from zoo.ops import selective_scan

CASE = Case(2, 20, 37, 8, groups=2, z=True)
OPERATOR = torch.ops.zoo.selective_scan.default


def operator_inputs(dtype=torch.float64, case=CASE):
    inputs = case.inputs(dtype)
    return [inputs[k] for k in ("u", "delta", "A", "B", "C", "D", "delta_bias")]


def non_contiguous(tensor):
    """Return the same values with the batch axis last in memory, as models produce them."""
    return tensor.movedim(0, -1).contiguous().movedim(-1, 0)


def bare(u: torch.Tensor, A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
    return selective_scan(u, u, A, B, B, delta_softplus=False)


class Scan(torch.nn.Module):
    def __init__(self, backend="auto", rates=None):
        super().__init__()
        self.backend = backend
        self.log = torch.nn.Parameter(torch.zeros(20, 8) if rates is None else (-rates).log())

    def forward(self, u, delta, B, C, D, z, bias):
        A = -torch.exp(self.log)
        return selective_scan(u, delta, A, B, C, D, z=z, delta_bias=bias, backend=self.backend)


def module_and_inputs(backend, dtype=torch.float64, case=CASE):
    inputs = case.inputs(dtype)
    given = tuple(inputs[k] for k in ("u", "delta", "B", "C", "D", "z", "delta_bias"))
    return Scan(backend, inputs["A"]).to(dtype), given


# PyTorch's checker and its scan operator read `.grad` of tensors that are not leaves
ignore_grad_warning = pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor:UserWarning"
)


@ignore_grad_warning
@pytest.mark.parametrize(
    "layout", [torch.Tensor.contiguous, non_contiguous], ids=["contiguous", "non_contiguous"]
)
@pytest.mark.parametrize("backend", ["auto", "tiled"])
def test_opcheck(backend, layout):
    tensors = [layout(x) for x in operator_inputs(case=Case(2, 18, 5, 3, groups=2))]
    torch.library.opcheck(
        OPERATOR, ([x.clone().requires_grad_() for x in tensors] + [True, backend])
    )
    dy = layout(torch.randn(2, 18, 5, dtype=torch.float64))
    torch.library.opcheck(
        torch.ops.zoo.selective_scan_backward.default,
        (dy, *tensors, True, backend),
        test_utils=("test_schema", "test_faketensor"),  # it is not differentiable
    )


@pytest.mark.parametrize("backend", ["auto", "multi_level", "any_length"])
def test_compiles_in_one_graph_and_trains(backend):
    torch.compiler.reset()
    module, given = module_and_inputs(backend)
    # The graph of the operator is differentiated by the compiler, that of PyTorch's own is not:
    # it has thousands of nodes.
    compiler = "aot_eager" if backend == "auto" else "eager"
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend=compiler)
    for length in (37, 24) if backend == "auto" else (11,):
        cut = [x[..., :length].clone().requires_grad_() if x.ndim > 2 else x for x in given]
        expected = torch.autograd.grad(module(*cut).square().sum(), [module.log, *cut[:4]])
        actual = torch.autograd.grad(compiled(*cut).square().sum(), [module.log, *cut[:4]])
        assert all(relative_error(a, b) < 1e-12 for a, b in zip(actual, expected, strict=True))
    torch.compiler.reset()


def test_a_compiled_graph_has_one_operator_per_direction():
    torch.compiler.reset()
    graphs = []

    def keep(graph, _):
        graphs.append([str(node.target) for node in graph.graph.nodes])
        return make_boxed_func(graph.forward)

    module, given = module_and_inputs("auto")
    compiled = torch.compile(module, fullgraph=True, backend=aot_autograd(fw_compiler=keep))
    compiled(*given).sum().backward()
    forward, backward = graphs
    assert forward.count("zoo.selective_scan.default") == 1
    assert backward.count("zoo.selective_scan_backward.default") == 1
    torch.compiler.reset()


def test_a_traced_graph_has_one_operator():
    graph = make_fx(lambda *t: OPERATOR(*t, True, "auto"), tracing_mode="symbolic")(
        *operator_inputs()
    )
    targets = [node.target for node in graph.graph.nodes if node.op == "call_function"]
    assert targets.count(OPERATOR) == 1
    assert not any("exp" in str(target) for target in targets)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("backend", ["auto", "multi_level", "any_length"])
def test_exports_with_any_batch(backend, strict):
    module, given = module_and_inputs(backend)
    batch = torch.export.Dim("batch", min=1, max=64)
    shapes = tuple({0: batch} if x.ndim > 2 else None for x in given)
    program = torch.export.export(module, given, strict=strict, dynamic_shapes=shapes)
    custom = [n for n in program.graph.nodes if "zoo" in str(n.target)]
    assert len(custom) == (1 if backend == "auto" else 0)
    more = tuple(torch.cat([x, x.flip(0), x]) if x.ndim > 2 else x for x in given)
    for inputs in (given, more):
        assert relative_error(program.module()(*inputs), module(*inputs)) < 1e-12


@ignore_grad_warning
def test_the_scan_operator_of_pytorch_exports_with_any_length():
    module, given = module_and_inputs("scan", case=Case(2, 20, 12, 8, groups=2, z=True))
    length = torch.export.Dim("length", min=2, max=4096)
    shapes = tuple({x.ndim - 1: length} if x.ndim > 2 else None for x in given)
    with torch.no_grad():
        program = torch.export.export(module, given, strict=True, dynamic_shapes=shapes)
        other, more = module_and_inputs("sequential")
        module.log.data = other.log.data
        program = torch.export.export(module, given, strict=True, dynamic_shapes=shapes)
        assert relative_error(program.module()(*more), other(*more)) < 1e-12


# Lengths: one step, less than a chunk, whole chunks of each level, and one step more.
@pytest.mark.parametrize("traced", [37, 700])
def test_a_program_of_any_length(traced):
    module, given = module_and_inputs("any_length", case=Case(1, 4, traced, 2, groups=2, z=True))
    module.log = torch.nn.Parameter(module.log[:4, :2])
    axis = torch.export.Dim.AUTO
    shapes = tuple({x.ndim - 1: axis} if x.ndim > 2 else None for x in given)
    program = torch.export.export(module, given, dynamic_shapes=shapes)
    assert not any("zoo" in str(node.target) for node in program.graph.nodes)
    for length in (1, 2, 7, 8, 9, 64, 65, 512, 4096, 4097, 5000):
        _, more = module_and_inputs("auto", case=Case(1, 4, length, 2, groups=2, z=True))
        expected = selective_scan(*more[:2], -torch.exp(module.log), *more[2:5], *more[5:])
        assert relative_error(program.module()(*more), expected) < 1e-12, length


@pytest.mark.usefixtures("quiet_script")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_torchscript(dtype, tmp_path):
    module, given = module_and_inputs("auto", dtype)
    torch.jit.save(torch.jit.script(module), tmp_path / "scan.pt")
    scripted = torch.jit.load(tmp_path / "scan.pt")
    assert torch.equal(scripted(*given), module(*given))
    flat = (*given[:2], given[2][:, 0], given[3][:, 0], *given[4:])
    assert torch.equal(scripted(*flat), module(*flat))

    u, A, B = given[0].abs(), -torch.ones(20, 8), given[2]
    assert torch.equal(torch.jit.script(bare)(u, A, B), bare(u, A, B))


IMPORTING = """
import sys
import zoo.ops
zoo.ops.backends()
new = set(sys.modules)
assert not new & {"numba", "llvmlite", "mamba_ssm"}, new
assert not new & {"zoo.ops.scan.cpu", "zoo.ops.scan.gpu"}, new
"""


def run(python, tmp_path, code, *arguments):
    """Run a program in a new process and return its output."""
    (tmp_path / "program.py").write_text(code)
    command = [*python, str(tmp_path / "program.py"), *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_importing_the_package_imports_no_optional_compiler(python, tmp_path):
    run(python, tmp_path, IMPORTING)


WITHOUT_NUMBA = """
import importlib.util, sys
import numpy as np, torch
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "numba" else find(name, *rest)
sys.modules["numba"] = sys.modules["llvmlite"] = None  # importing them fails
import zoo, zoo.ops
assert not zoo.ops.backends()["numba"]
assert zoo.ops.scan.auto_backend("cpu") == "tiled"
stored = np.load(sys.argv[1])
inputs = {k: torch.from_numpy(v).requires_grad_() for k, v in stored.items() if k != "expected"}
y = zoo.ops.selective_scan(**inputs)
assert abs(y.detach().numpy() - stored["expected"]).max() < 1e-12
grads = torch.autograd.grad(y.square().sum(), list(inputs.values()))
plain = zoo.ops.selective_scan(**inputs, backend="multi_level")
for a, b in zip(grads, torch.autograd.grad(plain.square().sum(), list(inputs.values()))):
    assert (a - b).abs().max() <= 1e-12 * b.abs().max()
try:
    zoo.ops.selective_scan(**inputs, backend="numba")
except zoo.BadInput as error:
    print(error)
model = zoo.create_model("lightm_unet_2d", init_filters=8)
model(torch.randn(1, 3, 16, 24)).sum().backward()
assert all(p.grad.isfinite().all() for p in model.parameters())
"""


def test_everything_works_without_numba(python, tmp_path):
    inputs = CASE.inputs()
    np.savez(tmp_path / "case.npz", expected=definition(inputs), **inputs)
    output = run(python, tmp_path, WITHOUT_NUMBA, tmp_path / "case.npz")
    assert "backend='numba' is not installed; run pip install 'zoo-vision[fast]'" in output
