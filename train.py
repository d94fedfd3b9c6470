"""Train one recipe: python train.py --help"""

import sys

from trainable.cli import main

if __name__ == "__main__":
    sys.exit(main())
