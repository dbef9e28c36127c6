"""Exported files: one module for each format, verification, the manifest, prediction."""
