"""Data sets by name: `create.create_datamodule` returns loaders for any of them."""
