#define _GNU_SOURCE
#include "util.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

extern char *program_invocation_short_name;

static void print(const char *format, va_list list, int error)
{
    char text[MAX_MESSAGE];

    vsnprintf(text, sizeof text, format, list);
    if (error)
        fprintf(stderr, "%s: %s: %s\n", program_invocation_short_name, text, strerror(error));
    else
        fprintf(stderr, "%s: %s\n", program_invocation_short_name, text);
}

void die_with_error(const char *format, ...)
{
    int error = errno;
    va_list list;

    va_start(list, format);
    print(format, list, error);
    va_end(list);
    exit(125);
}

void die(const char *format, ...)
{
    va_list list;

    va_start(list, format);
    print(format, list, 0);
    va_end(list);
    exit(125);
}

void say(const char *format, ...)
{
    va_list list;

    va_start(list, format);
    print(format, list, 0);
    va_end(list);
}

static uint64_t read_clock(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}
bool is_among(uint32_t value, const uint32_t *list, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (list[i] == value)
            return true;
    return false;
}

uint64_t monotonic_ns(void) { return read_clock(CLOCK_MONOTONIC); }
uint64_t realtime_ns(void) { return read_clock(CLOCK_REALTIME); }

ssize_t send_message(int socket, const char *text, int fd)
{
    char control[CMSG_SPACE(sizeof fd)] = {0};
    struct iovec data = {(void *)text, strlen(text)};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1};

    if (fd >= 0) {
        message.msg_control = control;
        message.msg_controllen = sizeof control;
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(sizeof fd);
        memcpy(CMSG_DATA(header), &fd, sizeof fd);
    }
    return sendmsg(socket, &message, MSG_NOSIGNAL);
}

ssize_t receive_message(int socket, char *text, size_t size, int *fd)
{
    char control[CMSG_SPACE(sizeof *fd)];
    struct iovec data = {text, size - 1};
    struct msghdr message = {
        .msg_iov = &data, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    ssize_t got = recvmsg(socket, &message, MSG_CMSG_CLOEXEC);

    *fd = -1;
    if (got < 0)
        return got;
    text[got] = 0;
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    if (header && header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS &&
        header->cmsg_len == CMSG_LEN(sizeof *fd))
        memcpy(fd, CMSG_DATA(header), sizeof *fd);
    return got;
}
