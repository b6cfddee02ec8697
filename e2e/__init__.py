# SPDX-License-Identifier: GPL-2.0-or-later
"""End-to-end tests: see README.md."""
