"""Hyperparameter search: the depth, learning rate and other options that train the best network for some images."""
