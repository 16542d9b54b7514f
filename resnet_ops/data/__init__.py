"""From a path to batches on the device: `sources` reads images, `loader` and `augment` feed them."""
