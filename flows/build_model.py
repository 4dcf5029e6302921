"""`vocabgraft run`, by the name that cron lines and images know: python -m flows.build_model --help."""

import sys

from flows.cli import main

if __name__ == "__main__":
    main(["run", *sys.argv[1:]])
