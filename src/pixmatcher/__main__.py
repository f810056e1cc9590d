"""`python -m pixmatcher`."""

from .cli import main

main()
