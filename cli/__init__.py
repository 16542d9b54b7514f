"""The command line, installed as resnet_ops.cli: one file for each command.

It turns typed options into configurations, and results into text. It imports the library, never the other way round,
and torch and Ray only once a command runs.
"""

from resnet_ops.environment import clean_python_path

clean_python_path()  # before all that is imported below
