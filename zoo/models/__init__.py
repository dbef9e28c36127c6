"""Model families, one file each: the blocks, the network, its variants, names of public weights.

Arguments that all families share, such as `num_classes`, are described at `zoo.backbone.Backbone`.
"""
