"""`python -m edvit` is the `edvit` command."""

from edvit.cli import main

main()
