"""`python -m resnet_ops`: the command line, which the library imports nowhere else."""

from importlib import import_module

if __name__ == "__main__":
    import_module("resnet_ops.cli.main").main()
