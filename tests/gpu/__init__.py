"""What CUDA alone can show; imports nothing that a machine with a GPU and `pip install resnet-ops` lacks."""
