/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "qapi/qmp/qlist.h"
