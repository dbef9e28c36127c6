"""Training and evaluation: `fit.train` and `evaluate.evaluate` are what the entry points call.

The loop is our own, on Lightning's Fabric (devices, precision, processes): an interrupted run can
then be continued from any batch, bit for bit, without reaching into a framework's counters.
"""
