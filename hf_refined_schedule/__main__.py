"""`python -m hf_refined_schedule`, as `accelerate launch -m hf_refined_schedule launch SCRIPT` runs it."""

import sys

from .cli import main

sys.exit(main())
