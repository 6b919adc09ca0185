"""Print an algorithm's card."""

import sys

from seqrun.explain import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
