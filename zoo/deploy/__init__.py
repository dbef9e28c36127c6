"""Export models to files, verify them, describe them in a manifest, and predict with them."""
