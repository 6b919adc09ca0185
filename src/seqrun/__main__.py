"""`python -m seqrun` is the command `seqrun`."""

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    # Python puts the working directory first, where a file could take a package's place.
    here = os.getcwd()
    if sys.path[:1] == [here] and Path(here) != Path(__file__).resolve().parents[1]:
        del sys.path[0]
    from seqrun.cli.run import entry

    entry()
