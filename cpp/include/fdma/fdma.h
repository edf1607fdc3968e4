/* libfdma: attention in which each query sees only the keys that a learned score says matter. C11, no dependencies. */
#ifndef FDMA_H
#define FDMA_H

#include <fdma/attention.h>
#include <fdma/cache.h>
#include <fdma/device.h>
#include <fdma/export.h>
#include <fdma/mask.h>
#include <fdma/select.h>
#include <fdma/status.h>
#include <fdma/types.h>
#include <fdma/version.h>

#endif
