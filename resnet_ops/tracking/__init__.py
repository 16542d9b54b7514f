"""Metrics where users already look: TensorBoard's event files, MLflow, Weights & Biases; by their own libraries."""
