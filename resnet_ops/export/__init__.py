"""Export of checkpoints to ONNX (`job`, `graph`), its verification (`proof`), and use of the files (`classifier`)."""
