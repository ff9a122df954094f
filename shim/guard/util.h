/* Small things that the guard and the launcher share. */
#ifndef VGPU_GUARD_UTIL_H
#define VGPU_GUARD_UTIL_H

#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/types.h>
#include <unistd.h>

#define MAX_MESSAGE 1024

/* "vgpu-guard: pidfd_getfd: Operation not permitted", then exit 125, the code that containers use for "could not
 * start". */
__attribute__((noreturn, format(printf, 1, 2))) void die_with_error(const char *format, ...);
__attribute__((noreturn, format(printf, 1, 2))) void die(const char *format, ...);
__attribute__((format(printf, 1, 2))) void say(const char *format, ...);

static inline void cleanup_fd(int *fd)
{
    if (*fd >= 0)
        close(*fd);
}
#define CLEANUP_FD __attribute__((cleanup(cleanup_fd)))

bool is_among(uint32_t value, const uint32_t *list, size_t count);

uint64_t monotonic_ns(void);
uint64_t realtime_ns(void);

/* One datagram with up to one descriptor. Return bytes or -1 with errno; *fd is -1 where none came. */
ssize_t send_message(int socket, const char *text, int fd);
ssize_t receive_message(int socket, char *text, size_t size, int *fd);

#endif
