"""Run an experiment, or a multirun of them: `python run.py --help`. It is the command `seqrun`."""

from seqrun.cli.run import entry

if __name__ == "__main__":
    entry()
