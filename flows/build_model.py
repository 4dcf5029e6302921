"""`python -m flows.build_model`: the same as `vocabgraft run`, for cron lines and images."""

import sys

from flows.cli import main

if __name__ == "__main__":
    main(["run", *sys.argv[1:]])
