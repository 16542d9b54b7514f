"""The command line: one file a command, imported as resnet_ops.cli.

It turns what is typed into a configuration, and what happens into text. It imports the library,
never the other way round, and torch and Ray only once a command runs.
"""
