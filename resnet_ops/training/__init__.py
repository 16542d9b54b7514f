"""Training: `trainer` is the loop, `worker` one process of it, `job` the command that trains or resumes a run."""
