"""``python -m detection_client`` is the command ``detect``."""

import sys

from detection_client._cli import main

sys.exit(main())
