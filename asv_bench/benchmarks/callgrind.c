/* What counting.py asks of callgrind from inside a counted program, and a clock that does not depend on the machine:
   preload it (LD_PRELOAD; Linux). The header comes with valgrind. */
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include <valgrind/callgrind.h>

/* Begins to count; until then a program runs several times as fast. */
void start(void)
{
    CALLGRIND_START_INSTRUMENTATION;
}

/* Writes what was counted since the last call to a file, under a name, and counts from 0 again. */
void take(const char *name)
{
    CALLGRIND_DUMP_STATS_AT(name);
}

void stop(void)
{
    CALLGRIND_STOP_INSTRUMENTATION;
}

/* A microsecond passes with each look at a clock. With a real one, timers would fire and threads would run as often as
   the machine is slow, and be counted. */
int clock_gettime(clockid_t clock, struct timespec *now)
{
    static struct timespec times[2]; /* of the day, and all others */
    struct timespec *time = &times[clock != CLOCK_REALTIME];

    if (!time->tv_sec && syscall(SYS_clock_gettime, clock, time))
        return -1;
    time->tv_nsec += 1000;
    if (time->tv_nsec >= 1000000000) {
        time->tv_nsec -= 1000000000;
        time->tv_sec++;
    }
    *now = *time;
    return 0;
}
