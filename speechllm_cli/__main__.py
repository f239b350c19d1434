"""`python -m speechllm_cli`, the command where it is not on the path."""

import sys

from .main import main

sys.exit(main())
