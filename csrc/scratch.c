/* Memory that a thread keeps between calls: it grows, is never shared, and goes with the thread. */
#define _GNU_SOURCE
#include "internal.h"

#include <pthread.h>
#include <stdlib.h>

typedef struct {
    void *memory[HERD_SCRATCH_SLOTS];
    size_t bytes[HERD_SCRATCH_SLOTS];
} scratch;

static pthread_key_t key;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static int have_key;
static _Thread_local scratch *mine;

static void release(void *memory) {
    scratch *held = memory;
    for (int slot = 0; slot < HERD_SCRATCH_SLOTS; slot++) free(held->memory[slot]);
    free(held);
}

static void make_key(void) { have_key = !pthread_key_create(&key, release); }

void *herd_scratch(int slot, size_t bytes) {
    if (!mine) {
        pthread_once(&once, make_key);
        mine = calloc(1, sizeof *mine);
        if (!mine) return NULL;
        if (have_key) pthread_setspecific(key, mine);
    }
    if (mine->bytes[slot] < bytes) {
        size_t wanted = (bytes + bytes / 4 + 4095) & ~(size_t)4095;
        free(mine->memory[slot]);
        mine->memory[slot] = NULL;
        mine->bytes[slot] = 0;
        if (posix_memalign(&mine->memory[slot], 4096, wanted)) {
            mine->memory[slot] = NULL;
            return NULL;
        }
        mine->bytes[slot] = wanted;
    }
    return mine->memory[slot];
}
