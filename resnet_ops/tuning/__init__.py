"""Searches: which depth, learning rate and whatever else trains the best network for some images."""
