"""`python -m resnet_ops`: the command line, which the library imports nowhere else."""

from importlib import import_module

from resnet_ops.environment import leave_current_folder

if __name__ == "__main__":
    leave_current_folder()
    import_module("resnet_ops.cli.main").main()
