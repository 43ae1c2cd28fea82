/* Preloaded into a process of the tests: kills it at a chosen system call that changes what is stored, or makes the
 * disk full from that call on. SQLite's own calls count as well as Python's.
 *
 *     signet_arm(call, how)   from now on, at the call of that number:
 *                             'b' die before it, 't' die in the middle of it (a write that wrote half), 'a' die after
 *                             it, 'f' fail with ENOSPC, and every call after it that needs room
 *     signet_disarm()         returns how many calls there were
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <sys/types.h>
#include <sys/socket.h>
#include <unistd.h>

static atomic_long calls = -1; /* below 0: not armed */
static long chosen;
static char way;

void signet_arm(long call, char how)
{
    chosen = call;
    way = how;
    atomic_store(&calls, 0);
}

long signet_disarm(void)
{
    return atomic_exchange(&calls, -1);
}

static void die(void)
{
    kill(getpid(), SIGKILL);
    for (;;)
        pause();
}

/* What is to become of a call: 0 as it is, 't' or 'a' as above, 'f' to fail. Does not return for 'b'. */
static char fate(int needs_room)
{
    if (atomic_load(&calls) < 0)
        return 0;
    long call = atomic_fetch_add(&calls, 1) + 1;
    if (way == 'f')
        return call >= chosen && needs_room ? 'f' : 0;
    if (call != chosen)
        return 0;
    if (way == 'b')
        die();
    return way;
}

#define REAL(name) __typeof__(name) *real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

#define COUNTED(result, name, parameters, arguments, needs_room, half)                                                 \
    result name parameters                                                                                             \
    {                                                                                                                  \
        REAL(name);                                                                                                    \
        char what = fate(needs_room);                                                                                  \
        if (what == 'f') {                                                                                             \
            errno = ENOSPC;                                                                                            \
            return -1;                                                                                                 \
        }                                                                                                              \
        if (what == 't') {                                                                                             \
            half;                                                                                                      \
            die();                                                                                                     \
        }                                                                                                              \
        result done = real arguments;                                                                                  \
        if (what == 'a')                                                                                               \
            die();                                                                                                     \
        return done;                                                                                                   \
    }

COUNTED(ssize_t, write, (int file, const void *data, size_t size), (file, data, size), 1, real(file, data, size / 2))
COUNTED(ssize_t, pwrite, (int file, const void *data, size_t size, off_t at), (file, data, size, at), 1,
        real(file, data, size / 2, at))
COUNTED(ssize_t, pwrite64, (int file, const void *data, size_t size, off64_t at), (file, data, size, at), 1,
        real(file, data, size / 2, at))
COUNTED(ssize_t, send, (int socket, const void *data, size_t size, int flags), (socket, data, size, flags), 0,
        real(socket, data, size / 2, flags))
COUNTED(int, fsync, (int file), (file), 0, )
COUNTED(int, fdatasync, (int file), (file), 0, )
COUNTED(int, ftruncate, (int file, off_t size), (file, size), 1, )
COUNTED(int, ftruncate64, (int file, off64_t size), (file, size), 1, )
COUNTED(int, rename, (const char *from, const char *to), (from, to), 0, )
COUNTED(int, link, (const char *from, const char *to), (from, to), 1, )
COUNTED(int, unlink, (const char *path), (path), 0, )
COUNTED(int, unlinkat, (int folder, const char *path, int flags), (folder, path, flags), 0, )
COUNTED(int, rmdir, (const char *path), (path), 0, )
COUNTED(int, mkdir, (const char *path, mode_t mode), (path, mode), 1, )
