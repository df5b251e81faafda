"""`python -m slm` does what `slm` does.

    python -m slm train configs/stories_cpu.yaml

Exported from chapters/19_door.py; edit it there.
"""

import sys

from slm.cli import main

# `python -m slm` and `import slm`

if __name__ == "__main__" and __package__ == "slm":  # not imported, no notebook
    sys.exit(main())
