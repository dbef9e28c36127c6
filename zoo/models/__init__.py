"""One file a family; imported by the registry when one of its variants is built."""
