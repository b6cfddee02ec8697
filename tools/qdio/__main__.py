# SPDX-License-Identifier: GPL-2.0-or-later
"""`python3 -m qdio`, which `./run` starts."""

import sys

from .cli import main

sys.exit(main(sys.argv[1:]))
