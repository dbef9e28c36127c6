"""The description of the machine and the software in a record."""

import os
import platform

import torch

from zoo.environment import describe_machine, summary, versions


def test_the_description_of_the_machine_omits_its_host_name():
    machine = describe_machine()
    assert 1 <= machine["usable_cores"] <= machine["cores"] == os.cpu_count()
    assert machine["architecture"] == platform.machine()
    assert machine["isa"] == torch.backends.cpu.get_cpu_capability()
    assert machine["cpu"] in summary()
    assert platform.node() not in str(machine).split()


def test_versions_of_installed_packages():
    found = versions("zoo", "torch")
    assert list(found) == ["python", "zoo", "torch"]
    assert found["python"] == platform.python_version()
    assert found["torch"] == torch.__version__.split("+")[0]
    assert "onnxruntime" in versions()
