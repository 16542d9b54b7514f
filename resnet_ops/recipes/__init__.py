"""Recipes: how to train, as small TOML files to read, copy and change. They are read in reading.py."""
