/* Makes disks of another kind: with LD_PRELOAD, each function fails with the error number of its variable.
   NO_FLOCK: flock; NO_FCNTL: locks on bytes; NO_MMAP: maps that are shared; NO_FSYNC: fsync; NO_FSYNC_FOLDER: fsync of
   folders. NO_USER: the list of users has no entry for a number. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pwd.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>

static int fails(const char *name) {
    const char *number = getenv(name);
    if (number)
        errno = atoi(number);
    return number != NULL;
}

int flock(int fd, int operation) {
    int (*real)(int, int) = dlsym(RTLD_NEXT, "flock");
    return fails("NO_FLOCK") ? -1 : real(fd, operation);
}

int getpwuid_r(uid_t uid, struct passwd *entry, char *buffer, size_t size, struct passwd **found) {
    int (*real)(uid_t, struct passwd *, char *, size_t, struct passwd **) = dlsym(RTLD_NEXT, "getpwuid_r");
    if (fails("NO_USER")) {
        *found = NULL;
        return 0;
    }
    return real(uid, entry, buffer, size, found);
}

static int control(int fd, int command, void *argument) {
    int (*real)(int, int, ...) = dlsym(RTLD_NEXT, "fcntl64");
    if (!real)
        real = dlsym(RTLD_NEXT, "fcntl");
    if ((command == F_SETLK || command == F_SETLKW || command == F_GETLK) && fails("NO_FCNTL"))
        return -1;
    return real(fd, command, argument);
}

#define CONTROL(name) \
    int name(int fd, int command, ...) { \
        va_list list; \
        va_start(list, command); \
        void *argument = va_arg(list, void *); \
        va_end(list); \
        return control(fd, command, argument); \
    }
CONTROL(fcntl)
CONTROL(fcntl64)

int fsync(int fd) {
    int (*real)(int) = dlsym(RTLD_NEXT, "fsync");
    struct stat status;
    if (fails("NO_FSYNC"))
        return -1;
    if (!fstat(fd, &status) && S_ISDIR(status.st_mode) && fails("NO_FSYNC_FOLDER"))
        return -1;
    return real(fd);
}

#define MAP(name) \
    void *name(void *place, size_t length, int protection, int flags, int fd, off_t offset) { \
        void *(*real)(void *, size_t, int, int, int, off_t) = dlsym(RTLD_NEXT, "mmap64"); \
        if (fd >= 0 && (flags & MAP_SHARED) && fails("NO_MMAP")) \
            return MAP_FAILED; \
        return real(place, length, protection, flags, fd, offset); \
    }
MAP(mmap)
MAP(mmap64)
