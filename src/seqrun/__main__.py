"""`python -m seqrun` is the command `seqrun`."""

from seqrun.cli.run import entry

if __name__ == "__main__":
    entry()
