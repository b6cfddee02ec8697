# SPDX-License-Identifier: GPL-2.0-or-later
"""Tests on machines other than x86-64 under TCG."""
