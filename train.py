"""python train.py GROUP=CHOICE KEY=VALUE ...: the same as `llmlab train`; `python train.py --help` says more."""

import sys

from llmlab.commands.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
