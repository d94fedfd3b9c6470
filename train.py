"""Train one recipe: python train.py --help"""

import sys

if __name__ == "__main__":
    try:
        from trainable.cli import main  # here, as importing takes seconds, and Ctrl-C may come in them

        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
