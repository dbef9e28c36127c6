"""Numerical kernels: one signature and one meaning each, in several forms.

Importing this package imports none of the optional compilers.
"""

from zoo.ops.aggregation import aggregate as aggregate
from zoo.ops.order import fixed_order as fixed_order
from zoo.ops.rational import rational as rational
from zoo.ops.scan import backends as backends
from zoo.ops.scan import selective_scan as selective_scan
from zoo.ops.wavelet import dual_tree as dual_tree
from zoo.ops.wavelet import haar as haar
from zoo.ops.wavelet import haar_pyramid as haar_pyramid
from zoo.ops.wavelet import inverse_dual_tree as inverse_dual_tree
from zoo.ops.wavelet import inverse_haar as inverse_haar
from zoo.ops.wavelet import inverse_haar_pyramid as inverse_haar_pyramid
