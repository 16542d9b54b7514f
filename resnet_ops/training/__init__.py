"""Training: `loop` is one process's work, `worker` what a cluster adds, `job` runs and follows it."""
