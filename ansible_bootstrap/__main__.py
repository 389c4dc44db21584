"""``python -m ansible_bootstrap`` is ``ansible-bootstrap``."""

import sys

from ansible_bootstrap.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
