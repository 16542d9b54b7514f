"""From a checkpoint to a file others can deploy: `graph` makes it, `proof` tries to refute it."""
