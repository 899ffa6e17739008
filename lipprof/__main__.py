"""``python -m lipprof`` is ``lipprof``."""

from lipprof.cli.app import main

main()
