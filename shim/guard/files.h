/*
 * Which of a tenant's open files of the driver are alive, without holding one: a held file would keep a dead tenant's
 * memory. The driver ties each client to the file that it was made on, and ends it with the file's last descriptor,
 * in whatever process that is; so does an epoll set forget a file, and /proc tells what a set still knows.
 */
#ifndef VGPU_GUARD_FILES_H
#define VGPU_GUARD_FILES_H

#include <stdbool.h>
#include <stdint.h>

#define FILES_MAX 4096        /* in a set */
#define FILES_MARK UINT32_MAX /* no file's tag */

/* One tag a file. Not safe for several threads at once: the tenant's lock is held. */
struct files {
    int epoll, twin, anchor; /* each file is in two epoll sets: only so can its tag be told while others are closed */
    int added;               /* at least as many as are alive */
};

bool files_open(struct files *files);
void files_close(struct files *files);
/* 0; EEXIST: it is known already; EPERM: files of this kind can't be watched; EMFILE: too many; or another errno. */
int files_add(struct files *files, int fd, uint32_t tag);
/* The tag of one; 0: it has none, or is not in the set. False: that can't be found out now. Costs two
 * reads of /proc. */
bool files_tag(struct files *files, int fd, uint32_t *tag);
/* Tags of the files that are alive. Returns their number, -1 where it can't be known. */
int files_alive(const struct files *files, uint32_t tags[FILES_MAX]);

#endif
