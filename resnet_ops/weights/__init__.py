"""Reads weights that were trained elsewhere, for training to begin with and for exports."""
