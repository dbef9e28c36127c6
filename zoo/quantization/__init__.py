"""Artefacts in int8: calibrated on real images, and judged by what they cost in accuracy.

Weights are quantised per channel and values per tensor, after fusing. `command` is what
`export.py quantize.int8=true` does; one module a format writes the artefact.
"""
