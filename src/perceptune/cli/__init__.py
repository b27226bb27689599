"""The command line: `main` builds the parser from the modules in `commands`; a command is one file there."""
