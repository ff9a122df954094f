/* Reaching into a tenant's processes: their memory, their descriptors, and noticing when they end. */
#ifndef VGPU_GUARD_REACH_H
#define VGPU_GUARD_REACH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

bool reach_read(pid_t tid, uint64_t address, void *to, size_t size);
bool reach_write(pid_t tid, uint64_t address, const void *from, size_t size);
/* Up to `size` bytes, as many as are mapped: the driver alone knows how long a class' parameters are. */
size_t reach_read_some(pid_t tid, uint64_t address, void *to, size_t size);
/* Write only what differs from `before`: what the driver did not touch is not the guard's to touch. */
bool reach_write_changes(pid_t tid, uint64_t address, const void *before, const void *after, size_t size);

/* Can the guard do all of that to this process? 0 or errno. */
int reach_can(pid_t pid);

int reach_pidfd(pid_t pid);
bool reach_has_exited(pid_t pid);              /* a zombie has */
int reach_thread(pid_t tid);                   /* a descriptor of one thread; -1: it is gone, or Linux is before 6.9 */
pid_t reach_process_of(pid_t tid, int thread); /* `thread`: its descriptor, or -1. -1: it is gone */
int reach_threads_of(pid_t pid);               /* as the kernel counts them; -1: it is gone */
/* The process' number in the innermost namespace that it is in, for its own tenant to read; where it is gone, pid. */
pid_t reach_pid_inside(pid_t pid);
/*
 * The calling thread's descriptor. A thread may have unshared its table from its process' (CLONE_FILES): the guard
 * must look at what the kernel would look at, or a thread could show it /dev/null and mean the driver. Without a
 * descriptor of the thread (-1) both must have the same table.
 */
int reach_descriptor(int pidfd, pid_t pid, pid_t tid, int thread, int fd);

bool reach_same_file(int fd, int other); /* of the guard's own */

/*
 * Be the tenant's user in this thread, for what the driver asks of the calling process rather than of the client.
 * Returns false where it can't be; reach_be_oneself() ends it.
 */
bool reach_be_user_of(pid_t tid);
void reach_be_oneself(void);

#endif
