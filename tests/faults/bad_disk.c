/* A disk that is slow or failing, for one process: preloaded, it stands between the process and libc.
 *
 * FAULT_DISK names a file of three int32: errno for every write (0: none), delay of a write in ms, and how many
 * calls met the fault (counted here). It is mapped, so that a change takes effect at once and costs nothing
 * while there is none. Only files below the folder FAULT_FOLDER are touched. Both names are relative to the
 * working directory at the start.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

static volatile int32_t *fault;
static char folder[PATH_MAX];

__attribute__((constructor)) static void attach(void)
{
    const char *path = getenv("FAULT_DISK"), *below = getenv("FAULT_FOLDER");
    int fd = path && below ? open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600) : -1;
    if (fd < 0)
        return;
    void *memory = MAP_FAILED;
    if (ftruncate(fd, 12) == 0)
        memory = mmap(NULL, 12, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (!getcwd(folder, sizeof folder - strlen(below) - 2) || memory == MAP_FAILED)
        return;
    strcat(strcat(folder, "/"), below);
    fault = memory;
}

static int below(const char *path) { return strncmp(path, folder, strlen(folder)) == 0; }

/* 0, or -1 with errno set where the fault is an error. */
static int meet(const char *path)
{
    if (!below(path))
        return 0;
    __sync_fetch_and_add((int32_t *)&fault[2], 1);
    if (fault[1] > 0) {
        struct timespec delay = {fault[1] / 1000, fault[1] % 1000 * 1000000L};
        nanosleep(&delay, NULL);
    }
    if (fault[0] == 0)
        return 0;
    errno = fault[0];
    return -1;
}

static int meet_fd(int fd)
{
    char link[64], path[PATH_MAX];
    if (!fault || (fault[0] == 0 && fault[1] == 0))
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size <= 0)
        return 0;
    path[size] = 0;
    return meet(path);
}

static int meet_path(const char *path)
{
    return !fault || (fault[0] == 0 && fault[1] == 0) ? 0 : meet(path);
}

#define REAL(name) \
    static __typeof__(&name) real; \
    if (!real) \
        real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

ssize_t write(int fd, const void *data, size_t size)
{
    REAL(write);
    return meet_fd(fd) ? -1 : real(fd, data, size);
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t at)
{
    REAL(pwrite);
    return meet_fd(fd) ? -1 : real(fd, data, size, at);
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at)
{
    REAL(pwrite64);
    return meet_fd(fd) ? -1 : real(fd, data, size, at);
}

int fsync(int fd)
{
    REAL(fsync);
    return meet_fd(fd) ? -1 : real(fd);
}

int fdatasync(int fd)
{
    REAL(fdatasync);
    return meet_fd(fd) ? -1 : real(fd);
}

int ftruncate(int fd, off_t size)
{
    REAL(ftruncate);
    return meet_fd(fd) ? -1 : real(fd, size);
}

int ftruncate64(int fd, off64_t size)
{
    REAL(ftruncate64);
    return meet_fd(fd) ? -1 : real(fd, size);
}

static int opened(int (*real)(const char *, int, ...), const char *path, int flags, mode_t mode)
{
    int writes = (flags & O_ACCMODE) != O_RDONLY || (flags & O_CREAT);
    return writes && meet_path(path) ? -1 : real(path, flags, mode);
}

#define MODE_OF(flags) \
    mode_t mode = 0; \
    if ((flags) & (O_CREAT | O_TMPFILE)) { \
        va_list rest; \
        va_start(rest, flags); \
        mode = va_arg(rest, mode_t); \
        va_end(rest); \
    }

int open(const char *path, int flags, ...)
{
    REAL(open);
    MODE_OF(flags)
    return opened(real, path, flags, mode);
}

int open64(const char *path, int flags, ...)
{
    REAL(open64);
    MODE_OF(flags)
    return opened(real, path, flags, mode);
}

int mkdir(const char *path, mode_t mode)
{
    REAL(mkdir);
    return meet_path(path) ? -1 : real(path, mode);
}

int unlink(const char *path)
{
    REAL(unlink);
    return meet_path(path) ? -1 : real(path);
}

int rename(const char *from, const char *to)
{
    REAL(rename);
    return meet_path(from) ? -1 : real(from, to);
}
