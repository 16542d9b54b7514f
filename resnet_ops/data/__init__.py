"""From a path to batches on the device: discovery -> sources -> parallel_decode and cache -> loader and augment."""
