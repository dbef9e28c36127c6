"""Parts that models are built from, one idea per file.

A part of a single family is defined in that family's file. Parts without a role in fusing or
exporting come from `timm.layers` (`DropPath`, `make_divisible`, `EffectiveSEModule`, `EcaModule`).
Those here that timm has as well are ours for one of these reasons: fusing needs to know their
layers (`Mlp`, `LayerScale`), exporting needs a graph that is right for any size (`PatchEmbed`,
position embeddings), or their names are in saved checkpoints and timm's defaults differ
(`SqueezeExcite`, `LayerNorm2d`).

A block that has a cheaper equal form returns it from `fused()` and is itself left unchanged;
`zoo.reparameterize` calls it (zoo/reparam.py). zoo/blocks/folding.py does most of the work.

A function whose branch depends on a size is wrapped by `torch.fx.wrap`, as a leaf for symbolic
tracing. Where it branches on `torch.jit.is_scripting()`, the `else:` is required: only then does
TorchScript skip that branch, whose Python it may not understand.
"""
