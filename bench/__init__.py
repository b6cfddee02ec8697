# SPDX-License-Identifier: GPL-2.0-or-later
"""Measures saving to files and restoring, against stock QEMU and fio."""
