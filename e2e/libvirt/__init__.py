# SPDX-License-Identifier: GPL-2.0-or-later
"""Save and restore through libvirt: the daemon and its domains."""
