"""``python -m partialnet``."""

from partialnet.cli import main

main()
