"""`python -m slm` does what `slm` does.

Exported from chapters/08_cost.py; edit it there.
"""

import sys

from slm.cli import main

if __package__ == "slm":  # and not in a notebook, which has this line too
    sys.exit(main())
