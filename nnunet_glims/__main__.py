"""`python -m nnunet_glims` is the command `nnunet-glims`."""

import sys

from nnunet_glims.cli import main

sys.exit(main())
