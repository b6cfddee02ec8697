# SPDX-License-Identifier: GPL-2.0-or-later
"""Saving and restoring through libvirt: its daemon, and its domains."""
