"""Training and evaluation: `fit.train` trains a model, `evaluation.evaluate_on` evaluates one.

The training loop is built on Lightning Fabric, which provides devices, precision and processes. A
run that is resumed at any batch gives bit-identical results.
"""
