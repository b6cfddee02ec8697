# SPDX-License-Identifier: GPL-2.0-or-later
"""What `./run` does: keep a patch series for several versions of QEMU in one
repository, build it, test it, show it."""
