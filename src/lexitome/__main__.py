"""`python -m lexitome`, the form that `torchrun -m lexitome train ...` starts."""

import sys

from lexitome.cli import main

if __name__ == "__main__":
    sys.exit(main())
