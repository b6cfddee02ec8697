# SPDX-License-Identifier: GPL-2.0-or-later
"""The implementation of `./run`: maintains, builds, tests and demonstrates a
patch series for several versions of QEMU in one repository."""
