/* A small thread pool: fork and join of short jobs, thousands a second, on a machine that has other work to do.

   - Tasks are claimed one by one by compare-and-swap, so that a thread that lost its core delays only the task it holds.
   - The caller works too, and waits for claimed tasks alone: a worker that is late finds nothing left and is not waited for.
   - Idle workers spin for some microseconds (the gap between two operators of a decode step), then sleep on a futex. Spinning without
     a bound collapses once a third busy thread wants a core.
   - A worker that finds itself on the caller's core moves off it: where other work keeps the cores busy, the system may leave both there.
   - One job at a time. A second caller does its whole job itself, rather than wait.

   `ticket` is generation << 32 | next index, or CLOSED in the low half while a job is being written. A worker reads the ticket, then the
   job, then claims by swapping the ticket it read: had the job changed in between, the ticket has too, and the swap fails. */
#define _GNU_SOURCE
#include "internal.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <time.h>

#if defined(__linux__)
#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#define CLOSED UINT32_MAX
#define MAX_WORKERS 255

static struct {
    _Alignas(64) _Atomic uint64_t ticket;
    _Atomic(herd_task) task;
    _Atomic(void *) job;
    _Atomic uint32_t count;
    _Alignas(64) _Atomic uint32_t done;
    _Atomic uint32_t caller_sleeps;
    _Alignas(64) _Atomic uint32_t epoch; /* counts jobs; what sleeping workers wait on */
    _Atomic uint32_t sleepers;
    _Alignas(64) _Atomic int active;     /* workers that may take tasks */
    _Atomic int caller_core;
    _Atomic int64_t spin_ns;
    uint32_t generation;                 /* the rest is written under `busy` */
    int started;
    int registered;
    pthread_mutex_t busy;
} pool = {.active = 0, .spin_ns = 50000, .busy = PTHREAD_MUTEX_INITIALIZER};

#if defined(__linux__)
static void wait_while(_Atomic uint32_t *address, uint32_t value) {
    syscall(SYS_futex, address, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}
static void wake_all(_Atomic uint32_t *address) { syscall(SYS_futex, address, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0); }
#else
static pthread_mutex_t sleep_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t sleep_changed = PTHREAD_COND_INITIALIZER;
static void wait_while(_Atomic uint32_t *address, uint32_t value) {
    pthread_mutex_lock(&sleep_lock);
    if (atomic_load(address) == value) pthread_cond_wait(&sleep_changed, &sleep_lock);
    pthread_mutex_unlock(&sleep_lock);
}
static void wake_all(_Atomic uint32_t *address) {
    (void)address;
    pthread_mutex_lock(&sleep_lock);
    pthread_cond_broadcast(&sleep_changed);
    pthread_mutex_unlock(&sleep_lock);
}
#endif

/* Leave the caller's core for the others that this thread may use; `allowed` is what it could use at first. */
#if defined(__linux__)
typedef cpu_set_t cores;
static void all_cores(cores *allowed) {
    if (sched_getaffinity(0, sizeof *allowed, allowed)) CPU_ZERO(allowed);
}
static int this_core(void) { return sched_getcpu(); }
static void leave_core(const cores *allowed, int core) {
    cores others = *allowed;
    if (core < 0 || core >= CPU_SETSIZE || core != this_core()) return;
    CPU_CLR(core, &others);
    if (CPU_COUNT(&others)) sched_setaffinity(0, sizeof others, &others);
}
#else
typedef int cores;
static void all_cores(cores *allowed) { *allowed = 0; }
static int this_core(void) { return -1; }
static void leave_core(const cores *allowed, int core) { (void)allowed, (void)core; }
#endif

static inline void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Claim and run tasks of the current job until none is left. They are counted as done together, at the end: until then the job cannot be
   over, so no other can have begun, and threads touch each other's line once less for each task. */
static void work(void) {
    uint32_t ran = 0;
    for (;;) {
        uint64_t ticket = atomic_load_explicit(&pool.ticket, memory_order_acquire);
        uint32_t index = (uint32_t)ticket;
        herd_task task = atomic_load_explicit(&pool.task, memory_order_acquire);
        void *job = atomic_load_explicit(&pool.job, memory_order_acquire);
        uint32_t count = atomic_load_explicit(&pool.count, memory_order_acquire);
        if (index == CLOSED || index >= count) {
            if (ran && atomic_fetch_add(&pool.done, ran) + ran == count && atomic_load(&pool.caller_sleeps)) wake_all(&pool.done);
            return;
        }
        if (!atomic_compare_exchange_weak_explicit(&pool.ticket, &ticket, ticket + 1, memory_order_acq_rel, memory_order_relaxed)) continue;
        task(job, index);
        ran++;
    }
}

static void *worker(void *argument) {
    int number = (int)(intptr_t)argument;
    uint32_t seen = atomic_load(&pool.epoch) - 1;
    cores allowed;
    all_cores(&allowed);
    for (;;) {
        int64_t until = now_ns() + atomic_load_explicit(&pool.spin_ns, memory_order_relaxed);
        int turns = 0;
        while (atomic_load_explicit(&pool.epoch, memory_order_acquire) == seen) {
            relax();
            if (++turns % 64 == 0 && now_ns() >= until) {
                atomic_fetch_add(&pool.sleepers, 1);
                while (atomic_load(&pool.epoch) == seen) wait_while(&pool.epoch, seen);
                atomic_fetch_sub(&pool.sleepers, 1);
                break;
            }
        }
        seen = atomic_load_explicit(&pool.epoch, memory_order_acquire);
        if (number >= atomic_load_explicit(&pool.active, memory_order_acquire)) continue;
        leave_core(&allowed, atomic_load_explicit(&pool.caller_core, memory_order_relaxed));
        work();
    }
    return NULL;
}

/* A forked child has none of its parent's threads. */
static void after_fork(void) {
    pool.started = 0;
    atomic_store(&pool.sleepers, 0);
    atomic_store(&pool.caller_sleeps, 0);
    pool.busy = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
}

/* Start workers up to the number that is wanted; signals stay with the threads of the program. Fewer than wanted is no error. */
static void start_workers(void) {
    if (!pool.registered) {
        pool.registered = 1;
        pthread_atfork(NULL, NULL, after_fork);
    }
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (pool.started < atomic_load(&pool.active)) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, worker, (void *)(intptr_t)pool.started)) break;
        pthread_detach(thread);
        pool.started++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

static void wait_for_done(uint32_t count) {
    if (atomic_load_explicit(&pool.done, memory_order_acquire) == count) return;
    int64_t until = now_ns() + atomic_load_explicit(&pool.spin_ns, memory_order_relaxed);
    for (int turns = 1; atomic_load_explicit(&pool.done, memory_order_acquire) != count; turns++) {
        relax();
        if (turns % 64 == 0 && now_ns() >= until) {
            atomic_store(&pool.caller_sleeps, 1);
            uint32_t done;
            while ((done = atomic_load(&pool.done)) != count) wait_while(&pool.done, done);
            atomic_store(&pool.caller_sleeps, 0);
            return;
        }
    }
}

void herd_pool_run(herd_task task, void *job, uint32_t count) {
    if (count < 2 || atomic_load_explicit(&pool.active, memory_order_relaxed) == 0 || pthread_mutex_trylock(&pool.busy)) {
        for (uint32_t index = 0; index < count; index++) task(job, index);
        return;
    }
    if (pool.started < atomic_load(&pool.active)) start_workers();
    atomic_store_explicit(&pool.caller_core, this_core(), memory_order_relaxed);
    uint64_t generation = (uint64_t)++pool.generation << 32;
    atomic_store(&pool.ticket, generation | CLOSED);
    atomic_store_explicit(&pool.task, task, memory_order_release);
    atomic_store_explicit(&pool.job, job, memory_order_release);
    atomic_store_explicit(&pool.count, count, memory_order_release);
    atomic_store(&pool.done, 0);
    atomic_store(&pool.ticket, generation);
    atomic_fetch_add(&pool.epoch, 1);
    if (atomic_load(&pool.sleepers)) wake_all(&pool.epoch);
    work();
    wait_for_done(count);
    pthread_mutex_unlock(&pool.busy);
}

int herd_num_threads(void) { return atomic_load(&pool.active) + 1; }

void herd_set_num_threads(int count) {
    int workers = count - 1 < 0 ? 0 : count - 1 > MAX_WORKERS ? MAX_WORKERS : count - 1;
    pthread_mutex_lock(&pool.busy);
    atomic_store(&pool.active, workers);
    pthread_mutex_unlock(&pool.busy);
}

void herd_set_spin(int64_t nanoseconds) { atomic_store(&pool.spin_ns, nanoseconds); }

static void count_task(void *job, uint32_t index) { atomic_fetch_add_explicit((_Atomic uint32_t *)job + index, 1, memory_order_relaxed); }

int herd_pool_stress(int64_t jobs, int64_t tasks) {
    _Atomic uint32_t *counts = herd_scratch(HERD_SCRATCH_CALL, (size_t)tasks * sizeof(uint32_t));
    int wrong = 0;
    if (!counts) return -1;
    for (int64_t job = 0; job < jobs; job++) {
        uint32_t count = (uint32_t)(1 + job % tasks);
        for (int64_t i = 0; i < tasks; i++) atomic_store_explicit(counts + i, 0, memory_order_relaxed);
        herd_pool_run(count_task, (void *)counts, count);
        for (int64_t i = 0; i < tasks; i++) wrong += atomic_load_explicit(counts + i, memory_order_relaxed) != (i < count);
    }
    return wrong;
}
