"""`python -m lexitome`, the form that `torchrun -m lexitome train ...` starts."""

import os
import sys

from lexitome.cli import main


def end(code: int) -> None:
    """Leave the interpreter; a launched rank that has trained leaves it at once (`parallel.leave`)."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and "lexitome.training.parallel" in sys.modules:
        from lexitome.training.parallel import leave

        leave(code)
    sys.exit(code)


if __name__ == "__main__":
    end(main())
