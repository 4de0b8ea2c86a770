"""`python -m metastore`: the same program as the console script `metastore`."""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - a checkout can be run by any Python, whatever pip would allow
    sys.exit("metastore needs Python 3.11 or newer; this is Python {}.{}.".format(*sys.version_info))

from metastore.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
