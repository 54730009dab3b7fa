/* Faults of the file system, for a process that is started with LD_PRELOAD=shim.so. The variables are read with each call:

   RELIABILITY_FAULT  kill, short, or the name of an error: ENOSPC, EIO, EDQUOT, EROFS, EPERM, ENOLCK, EINVAL
   RELIABILITY_CALLS  the functions that fail, with commas between: write, fsync, rename, link, flock, open, read
   RELIABILITY_PATH   only files whose path contains this text
   RELIABILITY_AFTER  how many of these calls still succeed, in all processes together
   RELIABILITY_COUNT  path of the file that counts them: it grows by one byte with each such call

   "open" means for writing. "short" writes a third of what was asked for, and from then on the disk is full. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static const struct { const char *name; int number; } errors[] = {
    {"ENOSPC", ENOSPC}, {"EIO", EIO}, {"EDQUOT", EDQUOT}, {"EROFS", EROFS}, {"EPERM", EPERM}, {"ENOLCK", ENOLCK}, {"EINVAL", EINVAL}};

static int is_listed(const char *call, const char *calls) {
    size_t length = strlen(call);
    for (const char *at = calls; at && (at = strstr(at, call)); at += length)
        if ((at == calls || at[-1] == ',') && (at[length] == 0 || at[length] == ',')) return 1;
    return 0;
}

/* Return 0 where the call succeeds, else the error to report, or -1 for a short write. */
static int fault(const char *call, const char *path, int descriptor) {
    const char *kind = getenv("RELIABILITY_FAULT"), *part = getenv("RELIABILITY_PATH");
    const char *after = getenv("RELIABILITY_AFTER"), *count = getenv("RELIABILITY_COUNT");
    char link[64], found[4096];
    struct stat status;
    if (!kind || !*kind || !part || !after || !count || !is_listed(call, getenv("RELIABILITY_CALLS"))) return 0;
    int before = errno;
    if (!path) {
        snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
        ssize_t length = readlink(link, found, sizeof found - 1);
        found[length < 0 ? 0 : length] = 0;
        path = found;
    }
    errno = before;
    if (!strstr(path, part)) return 0;
    int counter = syscall(SYS_openat, AT_FDCWD, count, O_WRONLY | O_APPEND | O_CREAT, 0600);
    if (counter < 0) return 0;
    syscall(SYS_write, counter, ".", 1);
    fstat(counter, &status);
    syscall(SYS_close, counter);
    errno = before;
    if (status.st_size <= atoll(after)) return 0;
    if (!strcmp(kind, "kill")) raise(SIGKILL);
    if (!strcmp(kind, "short")) return status.st_size == atoll(after) + 1 ? -1 : ENOSPC;
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++)
        if (!strcmp(kind, errors[i].name)) return errors[i].number;
    return 0;
}

#define FAIL(number) do { errno = (number); return -1; } while (0)
#define REAL(type, name, ...) static type (*real)(__VA_ARGS__); if (!real) real = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

ssize_t write(int descriptor, const void *bytes, size_t count) {
    REAL(ssize_t, write, int, const void *, size_t);
    int failed = descriptor > 2 ? fault("write", NULL, descriptor) : 0;
    if (failed > 0) FAIL(failed);
    return real(descriptor, bytes, failed && count > 2 ? count / 3 : count);
}

ssize_t writev(int descriptor, const struct iovec *parts, int count) {
    REAL(ssize_t, writev, int, const struct iovec *, int);
    int failed = descriptor > 2 ? fault("write", NULL, descriptor) : 0;
    if (failed > 0) FAIL(failed);
    return real(descriptor, parts, failed ? 1 : count);
}

ssize_t pwrite64(int descriptor, const void *bytes, size_t count, off64_t at) {
    REAL(ssize_t, pwrite64, int, const void *, size_t, off64_t);
    int failed = fault("write", NULL, descriptor);
    if (failed > 0) FAIL(failed);
    return real(descriptor, bytes, failed && count > 2 ? count / 3 : count, at);
}

ssize_t read(int descriptor, void *bytes, size_t count) {
    REAL(ssize_t, read, int, void *, size_t);
    int failed = descriptor > 2 ? fault("read", NULL, descriptor) : 0;
    if (failed > 0) FAIL(failed);
    return real(descriptor, bytes, count);
}

ssize_t sendfile64(int out, int in, off64_t *offset, size_t count) {
    REAL(ssize_t, sendfile64, int, int, off64_t *, size_t);
    int failed = fault("write", NULL, out);
    if (failed > 0) FAIL(failed);
    return real(out, in, offset, failed && count > 2 ? count / 3 : count);
}
ssize_t sendfile(int out, int in, off_t *offset, size_t count) { return sendfile64(out, in, offset, count); }

int fsync(int descriptor) {
    REAL(int, fsync, int);
    int failed = fault("fsync", NULL, descriptor);
    if (failed) FAIL(failed > 0 ? failed : ENOSPC);
    return real(descriptor);
}

int flock(int descriptor, int operation) {
    REAL(int, flock, int, int);
    int failed = fault("flock", NULL, descriptor);
    if (failed) FAIL(failed > 0 ? failed : ENOLCK);
    return real(descriptor, operation);
}

int rename(const char *old, const char *new) {
    REAL(int, rename, const char *, const char *);
    int failed = fault("rename", new, -1);
    if (failed) FAIL(failed > 0 ? failed : ENOSPC);
    return real(old, new);
}

int link(const char *old, const char *new) {
    REAL(int, link, const char *, const char *);
    int failed = fault("link", new, -1);
    if (failed) FAIL(failed > 0 ? failed : EPERM);
    return real(old, new);
}

int linkat(int from, const char *old, int to, const char *new, int flags) {
    REAL(int, linkat, int, const char *, int, const char *, int);
    int failed = fault("link", new, -1);
    if (failed) FAIL(failed > 0 ? failed : EPERM);
    return real(from, old, to, new, flags);
}

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        REAL(int, name, const char *, int, ...); \
        va_list rest; va_start(rest, flags); mode_t mode = va_arg(rest, mode_t); va_end(rest); \
        int failed = flags & (O_WRONLY | O_RDWR) ? fault("open", path, -1) : 0; \
        if (failed) FAIL(failed > 0 ? failed : ENOSPC); \
        return real(path, flags, mode); \
    }
OPEN(open)
OPEN(open64)
