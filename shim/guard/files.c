#define _GNU_SOURCE
#include "files.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>

#include "util.h"

#define TAG_ATTEMPTS 20 /* others' files may be closed meanwhile */

bool files_open(struct files *files)
{
    files->epoll = epoll_create1(EPOLL_CLOEXEC);
    files->anchor = open("/dev/null", O_RDONLY | O_CLOEXEC);
    return files->epoll >= 0 && files->anchor >= 0;
}

void files_close(struct files *files)
{
    cleanup_fd(&files->epoll);
    cleanup_fd(&files->anchor);
    files->epoll = files->anchor = -1;
}

/* epoll knows a file by itself and its number together: so every file comes under the anchor's number, and goes. */
static int control(struct files *files, int operation, int fd, uint32_t tag)
{
    struct epoll_event event = {.data.u64 = tag};
    int error = 0;

    CLEANUP_FD int nothing = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (nothing < 0 || dup3(fd, files->anchor, O_CLOEXEC) < 0)
        return errno;
    if (epoll_ctl(files->epoll, operation, files->anchor, &event) < 0)
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
    int error = control(files, EPOLL_CTL_ADD, fd, tag);
    files->added += error == 0;
    return error;
}

int files_retag(struct files *files, int fd, uint32_t tag) { return control(files, EPOLL_CTL_MOD, fd, tag); }
int files_remove(struct files *files, int fd) { return control(files, EPOLL_CTL_DEL, fd, 0); }

int files_alive(const struct files *files, uint32_t tags[FILES_MAX])
{
    char path[64], line[256];
    uint64_t tag;
    int count = 0;
    bool all = true;

    snprintf(path, sizeof path, "/proc/self/fdinfo/%d", files->epoll);
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

static bool sum_of_alive(const struct files *files, uint64_t *sum)
{
    uint32_t tags[FILES_MAX];
    int count = files_alive(files, tags);

    *sum = 0;
    for (int i = 0; i < count; i++)
        *sum += tags[i];
    return count >= 0;
}

/* A set can't be asked for a file's tag: so the tag is changed, and the one that is missing is it. */
bool files_tag(struct files *files, int fd, uint32_t *tag)
{
    uint64_t before, after;

    for (int attempt = 0; attempt < TAG_ATTEMPTS; attempt++) {
        /* a file that closes in between changes the sum: marked twice, it must come out the same */
        if (!sum_of_alive(files, &before))
            return false;
        int error = files_retag(files, fd, FILES_MARK);
        if (error == ENOENT) { /* it is not in the set */
            *tag = 0;
            return true;
        }
        if (error)
            return false;
        if (!sum_of_alive(files, &after))
            die("a file of a tenant's can't be told any more"); /* a successor finds all files anew */
        *tag = (uint32_t)(before + FILES_MARK - after);
        files_retag(files, fd, *tag);
        if (sum_of_alive(files, &after) && after == before)
            return true;
    }
    return false;
}
