"""Recipes: how to train, as small TOML files to read, copy and change. reading.py reads them."""
