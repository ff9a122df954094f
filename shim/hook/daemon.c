#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "hook.h"

#define MAX_UNKNOWN 64 /* of a process; so many more are not told */
#define MAX_MESSAGE 128
#define MAX_ANSWER 64
#define PATIENCE_SECONDS 3
#define HEARD_MS 100
#define HIGH_DESCRIPTOR 56 /* below 64: the kernel takes 15 ms to give threads a larger table */

/* One connection a process. What a process holds is given back when its connection closes, kill -9 included. */
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static int connection = -1;
static struct stat identity; /* of the connection */

static int connect_daemon(int flags)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd;

    if (!slice_directory() || snprintf(address.sun_path, sizeof address.sun_path, "%s/%s", slice_directory(),
                                       VGPU_JOIN_SOCKET) >= (int)sizeof address.sun_path)
        return -1;
    fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | flags, 0);
    if (fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof address) < 0) {
        close(fd);
        fd = -1;
    }
    return fd;
}

/* A program that closes what it did not open may have given our number to a file of its own by now. */
static bool is_ours(void)
{
    struct stat info;
    return connection >= 0 && fstat(connection, &info) == 0 && info.st_dev == identity.st_dev &&
           info.st_ino == identity.st_ino;
}

static void disconnect(void)
{
    if (is_ours())
        close(connection);
    connection = -1;
}

/* Its number is high, where programs that count on the lowest free one don't meet it. */
static void connect_again(void)
{
    const struct timeval patience = {.tv_sec = PATIENCE_SECONDS};
    int low = connect_daemon(0);

    if (low < 0)
        return;
    connection = fcntl(low, F_DUPFD_CLOEXEC, HIGH_DESCRIPTOR);
    if (connection < 0)
        connection = low;
    else
        close(low);
    setsockopt(connection, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    setsockopt(connection, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    if (fstat(connection, &identity) < 0)
        disconnect();
}

/* The parent's connection is the parent's account; and the mutex may be held by a thread that is not in the child. */
static void forget_parent(void)
{
    pthread_mutex_init(&mutex, NULL);
    disconnect();
}

static void watch_forks(void) { pthread_atfork(NULL, NULL, forget_parent); }

/* One answer, with up to one descriptor; *fd is -1 where none came. */
static ssize_t receive(char *answer, size_t room, int *fd)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control;
    struct iovec part = {answer, room};
    struct msghdr message = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    ssize_t got;

    *fd = -1;
    do
        got = recvmsg(connection, &message, MSG_CMSG_CLOEXEC);
    while (got < 0 && errno == EINTR);
    const struct cmsghdr *header = got > 0 ? CMSG_FIRSTHDR(&message) : NULL;
    if (header && header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS)
        memcpy(fd, CMSG_DATA(header), sizeof *fd);
    return got;
}

/* One question and its answer. A signal must neither ask twice nor leave an answer for the next question. */
static ssize_t exchange(const char *text, char *answer, size_t room, int *fd)
{
    ssize_t got;

    do
        got = send(connection, text, strlen(text), MSG_NOSIGNAL);
    while (got < 0 && errno == EINTR);
    return got < 0 ? -1 : receive(answer, room, fd);
}

/* Ask the daemon; it answers one line, which is left in `answer`, and may give a descriptor. */
static enum daemon_answer ask_for(const char *text, char answer[MAX_ANSWER], int *fd)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;

    *fd = -1;
    pthread_once(&once, watch_forks);
    pthread_mutex_lock(&mutex);
    if (!is_ours())
        connection = -1;
    if (connection < 0)
        connect_again();
    ssize_t got = connection < 0 ? -1 : exchange(text, answer, MAX_ANSWER - 1, fd);
    if (got <= 0)
        disconnect(); /* the daemon restarted, or is too slow: a late answer goes with the connection */
    pthread_mutex_unlock(&mutex);
    answer[got > 0 ? got : 0] = 0;
    if (got <= 0 || (got >= 4 && memcmp(answer, "away", 4) == 0))
        return DAEMON_AWAY;
    return got >= 2 && memcmp(answer, "ok", 2) == 0 ? DAEMON_YES : DAEMON_NO;
}

static enum daemon_answer ask(const char *text)
{
    char answer[MAX_ANSWER];
    int fd;
    enum daemon_answer said = ask_for(text, answer, &fd);

    if (fd >= 0)
        close(fd);
    return said;
}

int daemon_open_account(unsigned *place)
{
    char answer[MAX_ANSWER];
    int fd;

    if (ask_for("account", answer, &fd) == DAEMON_YES && sscanf(answer, "ok %u", place) == 1)
        return fd;
    if (fd >= 0)
        close(fd);
    return -1;
}

enum daemon_answer daemon_set_managed(uint64_t bytes)
{
    char text[64];
    snprintf(text, sizeof text, "managed %" PRIu64, bytes);
    return ask(text);
}

/* Said, and waited so long for that it was heard: a daemon that is busy must not keep the application. */
static void say_once(const char *text, int patience_ms)
{
    int fd = connect_daemon(SOCK_NONBLOCK);

    if (fd < 0)
        return;
    struct pollfd heard = {.fd = fd, .events = POLLIN};
    if (send(fd, text, strlen(text), MSG_NOSIGNAL | MSG_DONTWAIT) > 0 && patience_ms)
        poll(&heard, 1, patience_ms); /* a signal ends it: no matter */
    close(fd);
}

/* Symbols are literals or live as long as their library, and the same one may be told twice. */
void report_unknown(const char *symbol)
{
    static const char *told[MAX_UNKNOWN];
    static unsigned count;
    char text[MAX_MESSAGE];

    for (unsigned i = 0; i < MAX_UNKNOWN && i < __atomic_load_n(&count, __ATOMIC_RELAXED); i++)
        if (told[i] == symbol)
            return;
    unsigned place = __atomic_fetch_add(&count, 1, __ATOMIC_RELAXED);
    if (place >= MAX_UNKNOWN || snprintf(text, sizeof text, "unknown %s", symbol) >= (int)sizeof text)
        return;
    told[place] = symbol;
    say_once(text, 0);
}

void report_full(uint64_t bytes)
{
    char text[MAX_MESSAGE];

    snprintf(text, sizeof text, "full %" PRIu64, bytes);
    say_once(text, 0);
}

/* Many a program ends over it at once, and the daemon would not know any more who it was: so it is waited for. */
void report_refused(const char *call, uint64_t bytes)
{
    static time_t waited; /* once a second: a program that is refused all the time is not to wait all the time */
    char text[MAX_MESSAGE];
    time_t now = time(NULL);
    bool waits = __atomic_exchange_n(&waited, now, __ATOMIC_RELAXED) != now;

    if (snprintf(text, sizeof text, "refused %s %" PRIu64, call, bytes) < (int)sizeof text)
        say_once(text, waits ? HEARD_MS : 0);
}
