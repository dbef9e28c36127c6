"""Numerical operators, some with compiled backends that give the same results.

Importing this package imports no optional compiler. In functions with a branch for TorchScript
(`if torch.jit.is_scripting()`), the `else` branch may contain any Python, because TorchScript does
not compile it.
"""

from zoo.ops.aggregation import aggregate as aggregate
from zoo.ops.permutation import fixed_permutation as fixed_permutation
from zoo.ops.rational import rational as rational
from zoo.ops.scan import backends as backends
from zoo.ops.scan import selective_scan as selective_scan
from zoo.ops.wavelet import haar as haar
from zoo.ops.wavelet import haar_pyramid as haar_pyramid
from zoo.ops.wavelet import inverse_haar as inverse_haar
