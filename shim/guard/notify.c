#define _GNU_SOURCE
#include "notify.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include "backend.h"
#include "judge.h"
#include "ledger.h"
#include "sched.h"
#include "util.h"

#ifndef PIDFD_THREAD /* Linux 6.9 */
#define PIDFD_THREAD O_EXCL
#endif

struct listener listeners[MAX_LISTENERS];
bool notify_trace;

/* Processes that made a judged call: kept to notice their exit, and to take their descriptors. */
static struct {
    pid_t pid;
    int pidfd, slot;
} processes[MAX_PROCESSES];
static int process_end, epoll_fd;
static bool redoing; /* the call in hand is one that a predecessor may have carried out */

void notify_init(int epoll)
{
    epoll_fd = epoll;
    for (int i = 0; i < MAX_LISTENERS; i++)
        listeners[i].fd = -1;
}

static bool watch(int fd, uint32_t events, uint64_t data)
{
    struct epoll_event event = {.events = events, .data.u64 = data};
    return epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) == 0;
}

/* vgpud holds a copy of every listener, so closing ours would leave epoll watching it under a number that is reused. */
static void unwatch(int fd)
{
    if (epoll_ctl(epoll_fd, EPOLL_CTL_DEL, fd, NULL) < 0)
        say("epoll_ctl EPOLL_CTL_DEL: %s", strerror(errno));
    close(fd);
}

/* --- processes --- */

static int pidfd_open(pid_t pid, unsigned flags) { return (int)syscall(SYS_pidfd_open, pid, flags); }
static int pidfd_getfd(int pidfd, int fd) { return (int)syscall(SYS_pidfd_getfd, pidfd, fd, 0); }

static pid_t thread_group(pid_t tid)
{
    char path[64], text[1024];

    snprintf(path, sizeof path, "/proc/%d/status", tid);
    CLEANUP_FD int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t got = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    if (got <= 0)
        return -1;
    text[got] = 0;
    const char *line = strstr(text, "\nTgid:");
    return line ? (pid_t)strtol(line + 6, NULL, 10) : -1;
}

static int find_process(int slot, pid_t pid)
{
    for (int i = 0; i < process_end; i++)
        if (processes[i].pid == pid && processes[i].slot == slot)
            return i;
    return -1;
}

/* A free place, unless the tenant has its share of them. */
static int place_for(int slot)
{
    int spare = -1, own = 0;

    for (int i = 0; i < process_end; i++) {
        if (processes[i].pid == 0)
            spare = i;
        else
            own += processes[i].slot == slot;
    }
    if (own >= MAX_TENANT_PROCESSES)
        return -1;
    return spare >= 0 ? spare : process_end < MAX_PROCESSES ? process_end++ : -1;
}

/* Index of the calling thread's process; -1 when it is gone or the table is full. */
static int process_of(int slot, pid_t tid)
{
    int i = find_process(slot, tid);
    pid_t pid = i >= 0 ? 0 : thread_group(tid);

    if (i < 0 && pid > 0)
        i = find_process(slot, pid);
    if (i >= 0 || pid <= 0)
        return i;
    CLEANUP_FD int pidfd = pidfd_open(pid, 0);
    i = pidfd < 0 ? -1 : place_for(slot);
    if (i < 0 || !watch(pidfd, EPOLLIN, EVENT(EVENT_PROCESS, i)))
        return -1;
    processes[i].pid = pid;
    processes[i].pidfd = pidfd;
    processes[i].slot = slot;
    pidfd = -1; /* the table's now */
    return i;
}

/*
 * The calling thread's descriptor. A thread may have unshared its table from its process' (CLONE_FILES): the guard
 * must look at what the kernel would look at, or a thread could show it /dev/null and mean the driver.
 */
static int take_descriptor(int index, pid_t tid, int fd)
{
    if (tid == processes[index].pid)
        return pidfd_getfd(processes[index].pidfd, fd);
    CLEANUP_FD int thread = pidfd_open(tid, PIDFD_THREAD);
    if (thread >= 0)
        return pidfd_getfd(thread, fd);
    if (errno != EINVAL) /* before Linux 6.9 there are none of threads: then both must have the same table */
        return -1;
    if (syscall(SYS_kcmp, processes[index].pid, tid, KCMP_FILES, 0, 0) == 0)
        return pidfd_getfd(processes[index].pidfd, fd);
    errno = EACCES;
    return -1;
}

void notify_process_exited(int index)
{
    if (!processes[index].pid)
        return;
    ledger_lock();
    ledger_free_process(processes[index].pid);
    ledger_unlock();
    unwatch(processes[index].pidfd);
    processes[index].pid = 0;
    sched_wake();
}

static bool read_tenant(pid_t pid, uint64_t address, void *to, size_t size)
{
    struct iovec here = {to, size}, there = {(void *)(uintptr_t)address, size};
    return process_vm_readv(pid, &here, 1, &there, 1, 0) == (ssize_t)size;
}

static bool write_tenant(pid_t pid, uint64_t address, const void *from, size_t size)
{
    struct iovec here = {(void *)from, size}, there = {(void *)(uintptr_t)address, size};
    return process_vm_writev(pid, &here, 1, &there, 1, 0) == (ssize_t)size;
}

int notify_can_guard(pid_t pid)
{
    struct iovec here, there;
    unsigned char probe;
    char path[64], line[64];

    /* any mapped address will do: the start of its first mapping */
    snprintf(path, sizeof path, "/proc/%d/maps", pid);
    CLEANUP_FD int maps = open(path, O_RDONLY | O_CLOEXEC);
    if (maps < 0)
        return errno;
    if (read(maps, line, sizeof line - 1) <= 0)
        return EACCES;
    line[sizeof line - 1] = 0;
    here = (struct iovec){&probe, 1};
    there = (struct iovec){(void *)(uintptr_t)strtoull(line, NULL, 16), 1};
    if (process_vm_readv(pid, &here, 1, &there, 1, 0) != 1)
        return errno;
    CLEANUP_FD int pidfd = pidfd_open(pid, 0);
    if (pidfd < 0)
        return errno;
    CLEANUP_FD int fd = pidfd_getfd(pidfd, 0);
    return fd < 0 && errno != EBADF ? errno : 0;
}

/* --- answering --- */

static int notification_valid(int listener, uint64_t id)
{
    return ioctl(listener, SECCOMP_IOCTL_NOTIF_ID_VALID, &id) == 0;
}

static void answer(int listener, uint64_t id, int error, uint32_t flags)
{
    struct seccomp_notif_resp response = {.id = id, .error = -error, .flags = flags};

    /* ENOENT: the caller was killed meanwhile; nothing to tell. */
    if (ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &response) < 0 && errno != ENOENT)
        say("answer to a tenant: %s", strerror(errno));
    __atomic_store_n(&ledger->inflight.notification.id, 0, __ATOMIC_RELEASE);
}

/* Undo on the tenant's descriptor what was done for it. */
static void take_back(int fd, pid_t pid, uint32_t root, uint32_t parent, uint32_t handle)
{
    struct nvos00 call = {.root = root, .parent = parent, .object = handle};
    backend->perform(fd, pid, NV_REQUEST(NV_ESC_RM_FREE, struct nvos00), &call);
}

static bool write_alloc_result(pid_t tid, const struct call *call, const struct nvos64 *result)
{
    if (call->alloc.class == NV01_MEMORY_LOCAL_USER &&
        !write_tenant(tid, call->alloc.params, &call->memory, sizeof call->memory))
        return false;
    return write_tenant(tid, call->address + offsetof(struct nvos64, object), &result->object, sizeof result->object) &&
           write_tenant(tid, call->address + call->alloc_status_offset, &result->status, sizeof result->status);
}

/* The guard performs the allocation itself, from its own copy: what another thread swaps meanwhile changes nothing. */
static int perform_alloc(int fd, pid_t tid, struct call *call)
{
    struct nvos64 mine = call->alloc;
    bool root = NV_CLASS_IS_ROOT(mine.class), is_memory = mine.class == NV01_MEMORY_LOCAL_USER;
    bool counts = is_memory && NVOS32_ATTR_LOCATION(call->memory.attr) == NVOS32_ATTR_LOCATION_VIDMEM &&
                  !(call->memory.flags & NVOS32_ALLOC_FLAGS_VIRTUAL);
    struct ledger_object *object = NULL;
    enum reserve reserved = RESERVE_OK;

    ledger->inflight.root = mine.root;
    ledger->inflight.handle = mine.object;
    __atomic_store_n(&ledger->inflight.performing, 1, __ATOMIC_RELEASE);
    ledger_lock();
    if (!root && mine.object && ledger_find(mine.root, mine.object))
        reserved = RESERVE_TAKEN;
    else if (!root)
        reserved = ledger_reserve(call->slot, call->pid, mine.root, mine.parent, mine.object, mine.class,
                                  counts ? call->memory.size : 0, &object);
    ledger_unlock();
    if (reserved != RESERVE_OK) {
        uint32_t status = reserved == RESERVE_TAKEN ? NV_ERR_INSERT_DUPLICATE_NAME : NV_ERR_NO_MEMORY;
        return write_tenant(tid, call->address + call->alloc_status_offset, &status, sizeof status) ? 0 : EFAULT;
    }
    mine.params = is_memory ? (uintptr_t)&call->memory : 0;
    mine.params_size = is_memory ? sizeof call->memory : 0;
    mine.rights = 0;
    int rc = backend->perform(fd, call->pid, NV_REQUEST(NV_ESC_RM_ALLOC, struct nvos64), &mine);
    bool made = rc == 0 && mine.status == NV_OK;
    ledger_lock();
    if (made && root) {
        ledger_claim_root(call->slot, call->pid, mine.object);
    } else if (made) {
        ledger_commit(object, mine.object, counts ? call->memory.size : 0);
    } else if (object) {
        ledger_cancel(object);
    }
    ledger_unlock();
    if (rc < 0)
        return -rc;
    if (write_alloc_result(tid, call, &mine))
        return 0;
    if (made) { /* the tenant will never learn the handle */
        take_back(fd, call->pid, root ? mine.object : mine.root, mine.parent, mine.object);
        ledger_lock();
        ledger_free(root ? mine.object : mine.root, mine.object);
        ledger_unlock();
    }
    return EFAULT;
}

static int perform_free(int fd, pid_t tid, struct call *call)
{
    struct nvos00 mine = call->args.free;
    int rc = backend->perform(fd, call->pid, NV_REQUEST(NV_ESC_RM_FREE, struct nvos00), &mine);

    if (rc < 0)
        return -rc;
    if (redoing && mine.status != NV_OK) /* the guard that was killed had come that far */
        mine.status = NV_OK;
    if (mine.status == NV_OK) {
        ledger_lock();
        ledger_free(mine.root, mine.object);
        ledger_unlock();
    }
    return write_tenant(tid, call->address + offsetof(struct nvos00, status), &mine.status, sizeof mine.status)
               ? 0
               : EFAULT;
}

/* Copies the call out of the tenant. 0, or the errno that the kernel would have given. */
static int copy_call(const struct seccomp_notif *n, struct call *call)
{
    struct nv_xfer xfer;

    call->nr = n->data.args[1] & 0xFF;
    call->size = _IOC_SIZE(n->data.args[1]);
    call->address = n->data.args[2];
    if (call->nr == NV_ESC_IOCTL_XFER_CMD) {
        if (call->size != sizeof xfer)
            return EINVAL;
        if (!read_tenant((pid_t)n->pid, call->address, &xfer, sizeof xfer))
            return EFAULT;
        call->nr = xfer.command & 0xFF;
        call->size = xfer.size;
        call->address = xfer.params;
    }
    uint32_t wants = judge_wants(call->nr, call->size);
    if (wants && !read_tenant((pid_t)n->pid, call->address, call->args.bytes, wants))
        return EFAULT;
    return 0;
}

static int perform(int fd, pid_t tid, struct call *call, const struct verdict *verdict)
{
    switch (verdict->kind) {
    case VERDICT_STATUS:
        return write_tenant(tid, call->address + verdict->status_offset, &verdict->status, sizeof verdict->status)
                   ? 0
                   : EFAULT;
    case VERDICT_ERRNO: return verdict->error;
    case VERDICT_ALLOC:
        if (call->alloc.class == NV01_MEMORY_LOCAL_USER &&
            !read_tenant(tid, call->alloc.params, &call->memory, sizeof call->memory))
            return EFAULT;
        return perform_alloc(fd, tid, call);
    case VERDICT_FREE: return perform_free(fd, tid, call);
    case VERDICT_CONTINUE: break;
    }
    return 0;
}

static void trace(const struct call *call, const struct verdict *verdict)
{
    static const char *const words[] = {"continue", "status", "errno", "alloc", "free"};
    uint32_t object = call->nr == NV_ESC_RM_ALLOC ? call->alloc.object : call->args.control.object;
    uint32_t what = call->nr == NV_ESC_RM_ALLOC ? call->alloc.class : call->args.control.command;

    say("pid %d escape 0x%02x object 0x%08x class/command 0x%08x: %s", call->pid, call->nr, object, what,
        words[verdict->kind]);
}

/*
 * A client is a tenant's when the driver accepts a call under it on the tenant's own descriptor: it ties each client
 * to the file that it was made on. A name alone, guessed or made up, claims nothing.
 */
static void claim_client(int fd, const struct call *call)
{
    uint32_t ids[NV0000_PROBED_IDS_WORDS] = {0}, root = call->args.alloc.root; /* both forms begin alike */
    struct nvos54 question = {.client = root,
                              .object = root,
                              .command = NV0000_CTRL_CMD_GPU_GET_PROBED_IDS,
                              .params = (uintptr_t)ids,
                              .params_size = sizeof ids};

    ledger_lock();
    bool known = call->nr != NV_ESC_RM_ALLOC || NV_CLASS_IS_ROOT(call->args.alloc.class) ||
                 ledger_root_owner(root) == call->slot;
    ledger_unlock();
    if (known || backend->perform(fd, call->pid, NV_REQUEST(NV_ESC_RM_CONTROL, struct nvos54), &question) < 0 ||
        question.status != NV_OK)
        return;
    ledger_lock();
    ledger_claim_root(call->slot, call->pid, root);
    ledger_unlock();
}

/* Answer the notification in ledger->inflight. */
static void handle(int listener, int slot)
{
    const struct seccomp_notif *n = &ledger->inflight.notification;
    struct call call = {.slot = slot};
    int index = process_of(slot, (pid_t)n->pid);
    int error = index < 0 ? EAGAIN : copy_call(n, &call);

    /* The caller may be gone and its number another process' by now: ask before trusting what was read. */
    if (!notification_valid(listener, n->id)) {
        __atomic_store_n(&ledger->inflight.notification.id, 0, __ATOMIC_RELEASE);
        return;
    }
    if (error) {
        answer(listener, n->id, error, 0);
        return;
    }
    call.pid = processes[index].pid;
    ledger->inflight.pid = call.pid;
    CLEANUP_FD int fd = take_descriptor(index, (pid_t)n->pid, (int)n->data.args[0]);
    if (fd < 0 || !backend->is_driver(fd)) {
        /* Some other device's ioctl whose number looks like ours. */
        answer(listener, n->id, fd < 0 ? errno : 0, fd < 0 ? 0 : SECCOMP_USER_NOTIF_FLAG_CONTINUE);
        return;
    }
    claim_client(fd, &call);
    ledger_lock();
    bool tenant = tenants[slot].live;
    struct verdict verdict = tenant ? judge(&call) : (struct verdict){.kind = VERDICT_ERRNO, .error = EPERM};
    ledger_unlock();
    if (notify_trace)
        trace(&call, &verdict);
    if (verdict.kind == VERDICT_CONTINUE) {
        answer(listener, n->id, 0, SECCOMP_USER_NOTIF_FLAG_CONTINUE);
        if (verdict.schedules)
            sched_wake();
        return;
    }
    answer(listener, n->id, perform(fd, (pid_t)n->pid, &call, &verdict), 0);
}

/*
 * A predecessor was killed in mid-call. If the caller still waits, whatever was made for it is unmade, and the call
 * done anew. If it does not, it was answered, or died; what was reserved for a call that never ended is given back.
 */
static void recover(int listener, int slot)
{
    struct ledger_inflight *in = &ledger->inflight;

    if (!in->notification.id || in->tenant != (uint32_t)slot)
        return;
    bool valid = notification_valid(listener, in->notification.id);
    struct ledger_object *object = in->performing ? ledger_find(in->root, in->handle) : NULL;
    if (object && valid) {
        int index = process_of(slot, (pid_t)in->notification.pid);
        CLEANUP_FD int fd = index < 0 ? -1
                                      : take_descriptor(index, (pid_t)in->notification.pid,
                                                        (int)in->notification.data.args[0]);
        if (fd >= 0 && backend->is_driver(fd))
            take_back(fd, in->pid, in->root, object->parent, in->handle);
    }
    ledger_lock();
    if (object && (valid || object->state == OBJECT_RESERVED))
        ledger_cancel(object);
    ledger_unlock();
    in->performing = 0;
    redoing = valid;
    if (valid)
        handle(listener, slot);
    else
        in->notification.id = 0;
    redoing = false;
}

/* --- listeners --- */

void notify_adopt_processes(int slot)
{
    ledger_lock();
    for (uint32_t i = 0; i < ledger->object_end; i++) {
        pid_t pid = ledger->objects[i].pid;
        if (ledger->objects[i].state != OBJECT_FREE && ledger->objects[i].tenant == (uint32_t)slot &&
            process_of(slot, pid) < 0 && kill(pid, 0) < 0 && errno == ESRCH)
            ledger_free_process(pid);
    }
    ledger_unlock();
}

bool notify_add_listener(int slot, int fd)
{
    for (int i = 0; i < MAX_LISTENERS; i++) {
        if (listeners[i].fd >= 0)
            continue;
        if (!watch(fd, EPOLLIN, EVENT(EVENT_LISTENER, i)))
            break;
        listeners[i] = (struct listener){fd, slot};
        ledger_lock();
        ledger_set_tier(slot, VGPU_TIER_GUARD);
        ledger_unlock();
        recover(fd, slot);
        return true;
    }
    close(fd);
    return false;
}

void notify_listener_gone(int index)
{
    if (listeners[index].fd < 0)
        return;
    unwatch(listeners[index].fd);
    listeners[index].fd = -1;
}

void notify_remove_tenant(int slot)
{
    for (int i = 0; i < MAX_LISTENERS; i++)
        if (listeners[i].fd >= 0 && listeners[i].slot == slot)
            notify_listener_gone(i);
    for (int i = 0; i < process_end; i++)
        if (processes[i].pid && processes[i].slot == slot) {
            /* what it holds on the GPU would be nobody's, and be promised to another: it ends with its slice */
            syscall(SYS_pidfd_send_signal, processes[i].pidfd, SIGKILL, NULL, 0);
            unwatch(processes[i].pidfd);
            processes[i].pid = 0;
        }
}

int notify_listener_count(void)
{
    int count = 0;
    for (int i = 0; i < MAX_LISTENERS; i++)
        count += listeners[i].fd >= 0;
    return count;
}

void notify_listener_ready(int index)
{
    struct ledger_inflight *in = &ledger->inflight;

    if (listeners[index].fd < 0)
        return;
    memset(in, 0, sizeof *in);
    in->tenant = (uint32_t)listeners[index].slot;
    /* ENOENT: the caller was killed before we got here; EINTR: ask again next time round */
    if (ioctl(listeners[index].fd, SECCOMP_IOCTL_NOTIF_RECV, &in->notification) < 0) {
        in->notification.id = 0;
        return;
    }
    handle(listeners[index].fd, listeners[index].slot);
}
