"""Train one recipe: python train.py --help"""

import sys

if __name__ == "__main__":
    try:
        from trainable.cli import main  # here, as importing takes seconds, during which Ctrl-C may come

        sys.exit(main(prog="python train.py"))
    except KeyboardInterrupt:
        sys.exit(130)
