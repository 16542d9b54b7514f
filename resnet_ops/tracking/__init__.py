"""Experiment tracking: TensorBoard's event files, MLflow, Weights & Biases; by their own libraries."""
