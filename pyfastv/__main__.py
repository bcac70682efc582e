"""``python -m pyfastv``."""

import sys

from .commands.main import main

sys.exit(main())
