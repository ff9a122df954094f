#define _GNU_SOURCE
#include "files.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "util.h"

#define TAG_PAUSE_US 100
#define TAG_ATTEMPTS 1000 /* a file that is just being closed may have left one set and not yet the other */

bool files_open(struct files *files)
{
    files->epoll = epoll_create1(EPOLL_CLOEXEC);
    files->twin = epoll_create1(EPOLL_CLOEXEC);
    files->anchor = open("/dev/null", O_RDONLY | O_CLOEXEC);
    return files->epoll >= 0 && files->twin >= 0 && files->anchor >= 0;
}

void files_close(struct files *files)
{
    cleanup_fd(&files->epoll);
    cleanup_fd(&files->twin);
    cleanup_fd(&files->anchor);
    files->epoll = files->twin = files->anchor = -1;
}

/* epoll knows a file by itself and its number together: so every file comes under the anchor's number, and goes. */
static int control(struct files *files, int epoll, int operation, int fd, uint32_t tag)
{
    struct epoll_event event = {.data.u64 = tag};
    int error = 0;

    CLEANUP_FD int nothing = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (nothing < 0 || dup3(fd, files->anchor, O_CLOEXEC) < 0)
        return errno;
    if (epoll_ctl(epoll, operation, files->anchor, &event) < 0)
        error = errno;
    if (dup3(nothing, files->anchor, O_CLOEXEC) < 0)
        die_with_error("dup3"); /* else the tenant's file would be held for good */
    return error;
}

int files_add(struct files *files, int fd, uint32_t tag)
{
    uint32_t tags[FILES_MAX];

    if (files->added >= FILES_MAX)
        files->added = files_alive(files, tags);
    if (files->added < 0 || files->added >= FILES_MAX) {
        files->added = FILES_MAX;
        return EMFILE;
    }
    int error = control(files, files->epoll, EPOLL_CTL_ADD, fd, tag);
    if (!error && (error = control(files, files->twin, EPOLL_CTL_ADD, fd, tag)))
        control(files, files->epoll, EPOLL_CTL_DEL, fd, 0);
    files->added += error == 0;
    return error;
}

static int read_tags(int epoll, uint32_t tags[FILES_MAX])
{
    char path[64], line[256];
    uint64_t tag;
    int count = 0;
    bool all = true;

    snprintf(path, sizeof path, "/proc/self/fdinfo/%d", epoll);
    FILE *info = fopen(path, "re");
    if (!info)
        return -1;
    while (all && fgets(line, sizeof line, info)) {
        const char *data = strstr(line, "data:");
        if (strncmp(line, "tfd:", 4) != 0 || !data || sscanf(data, "data: %" SCNx64, &tag) != 1)
            continue;
        all = count < FILES_MAX;
        if (all)
            tags[count++] = (uint32_t)tag;
    }
    all = all && !ferror(info);
    fclose(info);
    return all ? count : -1;
}

int files_alive(const struct files *files, uint32_t tags[FILES_MAX]) { return read_tags(files->epoll, tags); }

static int compare_tags(const void *a, const void *b)
{
    uint32_t one = *(const uint32_t *)a, other = *(const uint32_t *)b;
    return (one > other) - (one < other);
}

/* The tag that the twin has and the set has not, of the file that is marked in the set. False: it can't be told yet. */
static bool find_missing(const struct files *files, uint32_t *missing)
{
    uint32_t tags[FILES_MAX], twins[FILES_MAX];
    int found = 0, count = read_tags(files->epoll, tags);
    /* the twin is read later: what it has besides the marked one was in the set too, unless it is being closed */
    int twin_count = read_tags(files->twin, twins);

    if (count < 0 || twin_count < 0)
        return false;
    qsort(tags, (size_t)count, sizeof *tags, compare_tags);
    for (int i = 0; i < twin_count; i++)
        if (!bsearch(&twins[i], tags, (size_t)count, sizeof *tags, compare_tags)) {
            *missing = twins[i];
            found++;
        }
    return found == 1;
}

/* A set can't be asked for a file's tag: so the tag is changed, and the one that is missing is it. */
bool files_tag(struct files *files, int fd, uint32_t *tag)
{
    int error = control(files, files->epoll, EPOLL_CTL_MOD, fd, FILES_MARK);

    if (error) {
        *tag = 0;
        return error == ENOENT; /* it is not in the set */
    }
    for (int attempt = 0; !find_missing(files, tag); attempt++) {
        if (attempt == TAG_ATTEMPTS)
            die("a file of a tenant's can't be told any more"); /* a successor finds all files anew */
        usleep(TAG_PAUSE_US);
    }
    error = control(files, files->epoll, EPOLL_CTL_MOD, fd, *tag);
    return error == 0;
}
