/* How the panels of a weight matrix are shared out between threads. */
#ifndef HERD_SHARE_H
#define HERD_SHARE_H

#include "internal.h"

#define MIN_BYTES 65536        /* weights a thread should have to read before a second one is asked */
#define TASKS_PER_THREAD 4

/* Panels that one task takes: an even number, few enough for every thread to have some, enough to be worth a task; of few tasks as many
   for each thread. `bytes` of a panel, or what takes as long. */
static int64_t share_panels(int64_t panels, int64_t bytes, int64_t most) {
    int64_t threads = herd_num_threads(), wanted = herd_ceil(panels, threads * TASKS_PER_THREAD);
    int64_t share = herd_min(herd_max(wanted, herd_ceil(MIN_BYTES, bytes)), most), tasks = herd_ceil(panels, share);
    if (tasks > threads && tasks < threads * TASKS_PER_THREAD) share = herd_min(herd_ceil(panels, tasks / threads * threads), most);
    return herd_max(2, share + (share & 1));
}

#endif
