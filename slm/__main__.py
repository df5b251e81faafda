"""`python -m slm` does what `slm` does.

    python -m slm train configs/stories_cpu.yaml

Exported from chapters/19_door.py; edit it there.
"""

import sys

from slm.cli import main

# `python -m slm` and `import slm`

if __package__ == "slm":  # and not in a notebook, which has this line too
    sys.exit(main())
