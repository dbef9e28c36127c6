"""Publish a model on the Hugging Face hub: the folder of a repository, and its upload."""
