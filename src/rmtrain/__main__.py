"""`python -m rmtrain`: what the launcher of several processes starts."""

import sys

if not sys.flags.safe_path:
    del sys.path[0]  # `-m` puts the current folder first: a yaml.py that lies there would be run

from rmtrain.cli import main

main()
