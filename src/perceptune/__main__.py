"""`python -m perceptune`."""

from perceptune.cli.main import main

main()
