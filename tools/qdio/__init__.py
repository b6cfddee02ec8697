# SPDX-License-Identifier: GPL-2.0-or-later
"""The implementation of `./run`: keeps a patch series for several versions of
QEMU in one repository, builds it, tests it, and demonstrates it."""
