"""Training and evaluation; `fit.train` runs the loop, `evaluation.evaluate_on` scores a model.

The loop is our own, on Lightning Fabric (devices, precision, processes), so that an interrupted run
can be resumed at any batch with bit-identical results.
"""
