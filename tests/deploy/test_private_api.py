"""Private API of other packages that exports rely on: it exists, and does what we rely on."""

import contextlib
import subprocess
import sys

import pytest
import torch
from onnx import parser
from torch import nn

from zoo.deploy import onnx
from zoo.deploy.tracing import without_size_one_assumptions
from zoo.environment import quiet


class Pooled(nn.Module):
    """Attention over the 8 x 8 regions of an image."""

    def forward(self, x):
        regions = nn.functional.avg_pool2d(x, 8).flatten(2)  # B C N
        return regions.softmax(dim=2) + regions.mean(dim=2, keepdim=True)


def traced(enabled):
    """Trace with several regions and return a program for any height and width."""
    auto = torch.export.Dim.AUTO
    with without_size_one_assumptions(enabled):
        x = torch.zeros(1, 3, 32, 40)
        return torch.export.export(Pooled(), (x,), dynamic_shapes=({2: auto, 3: auto},)).module()


def test_programs_run_on_feature_maps_of_one_position():
    """What `torch.fx.experimental._config.backed_size_oblivious` is set for."""
    images = torch.randn(1, 3, 8, 8)
    torch.testing.assert_close(traced(True)(images), Pooled()(images))
    with pytest.raises(AssertionError, match="Guard failed"):
        traced(False)(images)  # if this passes, PyTorch no longer needs the switch


def test_the_switch_of_torch_is_restored():
    from torch.fx.experimental import _config

    before = _config.backed_size_oblivious
    with contextlib.suppress(RuntimeError), without_size_one_assumptions(True):
        assert _config.backed_size_oblivious is True
        raise RuntimeError
    assert _config.backed_size_oblivious is before


def test_one_rule_of_the_onnx_optimiser_is_disabled_during_exports():
    from onnxscript import rewriter

    before = rewriter._DEFAULT_REWRITE_RULES
    with onnx._without_slow_rule():
        during = rewriter._DEFAULT_REWRITE_RULES
    assert [rule.name for rule in before if rule not in during] == [onnx.SLOW_RULE]
    assert rewriter._DEFAULT_REWRITE_RULES is before


def test_the_optimiser_does_not_apply_the_disabled_rule(monkeypatch):
    """It reads the rules from the variable that we replace."""
    from onnxscript import optimizer, rewriter

    applied = []
    create = rewriter.RewritePass

    def recorded(rules):
        applied.extend(rule.name for rule in rules)
        return create(rules)

    monkeypatch.setattr(rewriter, "RewritePass", recorded)
    text = '<ir_version: 10, opset_import: ["": 18]> g (float[2] x) => (float[2] y) { y = Relu(x) }'
    with onnx._without_slow_rule():
        optimizer.optimize(parser.parse_model(text))
    assert applied
    assert onnx.SLOW_RULE not in applied


def test_the_thread_pool_of_executorch_is_resized():
    """In a child process, because a pool can be resized only before a program is loaded."""
    code = (
        "from zoo.runtimes import executorch\n"
        "lib, _ = executorch.import_bindings()\n"
        "for threads in (2, 3):\n"
        "    executorch._pool_size = None\n"
        "    executorch._set_pool_size(threads)\n"
        "    print(lib._threadpool_get_thread_count())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()) == (0, ["2", "3"]), done.stderr


def test_the_patterns_of_xnnpack_with_batch_norms_are_known_by_name():
    """int8 and quantisation-aware training drop them by `_bn` in the name: fused nets have none."""
    with quiet():  # ExecuTorch warns while it is imported
        from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import XNNPACKQuantizer

    names = [pattern.name for pattern in XNNPACKQuantizer.SUPPORTED_PATTERNS]
    with_norms = [name for name in names if "_bn" in name]
    assert with_norms, "the quantiser has no such patterns any more; stop filtering"
    assert {"conv", "conv_relu", "linear", "linear_relu"} <= set(names) - set(with_norms)


def test_annotated_nodes_are_left_to_the_one_who_annotated_them():
    """The quantiser for ExecuTorch annotates a convolution and its clamp with `_annotated=True`."""
    with quiet():
        from executorch.backends.xnnpack.quantizer.xnnpack_quantizer_utils import _is_annotated
        from torchao.quantization.pt2e.quantizer import QuantizationAnnotation

    graph = torch.fx.symbolic_trace(nn.ReLU())
    node = next(n for n in graph.graph.nodes if n.op == "call_module" or n.op == "call_function")
    assert not _is_annotated([node])
    node.meta["quantization_annotation"] = QuantizationAnnotation(_annotated=True)
    assert _is_annotated([node])
