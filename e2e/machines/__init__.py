# SPDX-License-Identifier: GPL-2.0-or-later
"""Tests on other machines than x86-64 under TCG."""
