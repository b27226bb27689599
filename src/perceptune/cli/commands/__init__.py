"""Commands: one file each, found by its name. A file holds a command's arguments, its function and its examples.

A file's docstring is the command's help: its first line in the list of commands, the rest below its options.
`add_arguments(parser)` adds to a `perceptune.cli.parsing.Parser`; `run(options)` returns the exit code, or None for 0.
Neither torch nor transformers is imported before `run`.
"""
