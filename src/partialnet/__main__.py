"""``python -m partialnet``."""

from partialnet_cli import main

main()
