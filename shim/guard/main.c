/* vgpu-guard: answers tenants' driver calls and decides who is on the GPU. One a node; vgpud starts it. */
#define _GNU_SOURCE
#include <errno.h>
#include <getopt.h>
#include <linux/capability.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>

#include "account.h"
#include "backend.h"
#include "control.h"
#include "ledger.h"
#include "notify.h"
#include "sched.h"
#include "util.h"

const struct backend *backend;
int gpu_count;

/* Without a vgpud and without tenants there is nothing to guard: a forgotten guard ends by itself. */
#define ORPHAN_NS 10000000000ull
#define EVENTS 64
#define SETTLED_NS 15000000000ull /* by then vgpud has handed over every listener of a predecessor */

#ifndef CAP_PERFMON /* Linux 5.8 */
#define CAP_PERFMON 38
#endif

/* What an epoll event is about: kind in the high half, descriptor in the low. */
enum event_kind { EVENT_CONTROL_SOCKET, EVENT_CONTROLLER };
#define EVENT(kind, fd) ((uint64_t)(kind) << 32 | (uint32_t)(fd))

static void print_layout(void)
{
    const char *comma = "";

    printf("{\"magic\": %u, \"version\": %u, \"processes_max\": %u, \"size\": %zu, \"processes_offset\": %zu, "
           "\"process_size\": %zu,\n",
           VGPU_PAGE_MAGIC, VGPU_PAGE_VERSION, VGPU_PAGE_PROCESSES, sizeof(struct vgpu_slice_page),
           offsetof(struct vgpu_slice_page, processes), sizeof(struct vgpu_process_row));
    printf(" \"page_file\": \"%s\", \"join_socket\": \"%s\", \"env_dir\": \"%s\", \"env_tier\": \"%s\", "
           "\"tenants_max\": %d, \"protocol\": %d, \"unguarded\": \"%s\",\n",
           VGPU_PAGE_FILE, VGPU_JOIN_SOCKET, VGPU_ENV_DIR, VGPU_ENV_TIER, LEDGER_TENANTS, CONTROL_PROTOCOL, UNGUARDED);
    printf(" \"gpu_uuid_offset\": %zu, \"gpu_uuid_length\": %d,\n", offsetof(struct vgpu_slice_page, gpu_uuid),
           VGPU_UUID_LENGTH);
    printf(" \"policies\": {\"hard\": %d, \"burst\": %d}, \"tiers\": {\"none\": %d, \"guard\": %d, \"shim\": %d},\n",
           VGPU_POLICY_HARD, VGPU_POLICY_BURST, VGPU_TIER_NONE, VGPU_TIER_GUARD, VGPU_TIER_SHIM);
#define FIELD(type, name)                                                                          \
    printf("%s\n  \"%s\": [%zu, %zu]", comma, #name, offsetof(struct STRUCT, name), sizeof(type)); \
    comma = ",";
    printf(" \"page\": {");
#define STRUCT vgpu_slice_page
    VGPU_PAGE_FIELDS(FIELD)
#undef STRUCT
    printf("},\n \"process\": {");
    comma = "";
#define STRUCT vgpu_process_row
    VGPU_PROCESS_FIELDS(FIELD)
#undef STRUCT
    printf("},\n \"account_file\": \"%s\", \"account_magic\": %u, \"account_version\": %u, \"account_size\": %zu, "
           "\"account_rows_offset\": %zu, \"account_row_size\": %zu, \"account_rows\": %u, "
           "\"account_used_offset\": %zu,\n \"account\": {",
           VGPU_ACCOUNT_FILE, VGPU_ACCOUNT_MAGIC, VGPU_ACCOUNT_VERSION, sizeof(struct vgpu_account),
           offsetof(struct vgpu_account, rows), sizeof(struct vgpu_account_row), VGPU_ACCOUNT_ROWS,
           offsetof(struct vgpu_account, used_ns));
    comma = "";
#define STRUCT vgpu_account
    VGPU_ACCOUNT_FIELDS(FIELD)
#undef STRUCT
    printf("},\n \"account_row\": {");
    comma = "";
#define STRUCT vgpu_account_row
    VGPU_ACCOUNT_ROW_FIELDS(FIELD)
#undef STRUCT
    printf("}}\n");
}

static int listen_on(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (fd < 0)
        die_with_error("socket");
    if (strlen(path) >= sizeof address.sun_path)
        die("%s is too long for a socket's name: %zu characters at most", path, sizeof address.sun_path - 1);
    strcpy(address.sun_path, path);
    /* The state's lock is ours by now, so a socket that is there is a dead guard's. */
    if (unlink(path) < 0 && errno != ENOENT)
        die_with_error("unlink %s", path);
    mode_t mask = umask(0177);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) < 0)
        die_with_error("bind %s", path);
    umask(mask);
    if (listen(fd, 8) < 0)
        die_with_error("listen %s", path);
    return fd;
}

static int signal_descriptor(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    if (sigprocmask(SIG_BLOCK, &set, NULL) < 0)
        die_with_error("sigprocmask");
    int fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    if (fd < 0)
        die_with_error("signalfd");
    return fd;
}

static void watch(int epoll, int fd, uint64_t data)
{
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = data};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) < 0)
        die_with_error("epoll_ctl");
}

static void controller_ready(int fd, int *controllers)
{
    char text[MAX_MESSAGE];
    int passed;
    ssize_t got = receive_message(fd, text, sizeof text, &passed);

    if (got > 0) {
        control_message(fd, text, passed);
        return;
    }
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    close(fd);
    --*controllers;
}

static void loop(int epoll, int server, int signals)
{
    struct epoll_event events[EVENTS];
    uint64_t alone_since = monotonic_ns(), started = alone_since;
    bool settled = false;
    int controllers = 0;

    while (!control_wants_end()) {
        int count = epoll_wait(epoll, events, EVENTS, 1000);
        if (count < 0 && errno != EINTR)
            die_with_error("epoll_wait");
        for (int i = 0; i < count; i++) {
            int index = (int)(uint32_t)events[i].data.u64;
            switch ((enum event_kind)(events[i].data.u64 >> 32)) {
            case EVENT_CONTROL_SOCKET:
                if (index == signals)
                    return;
                index = accept4(server, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
                if (index >= 0) {
                    watch(epoll, index, EVENT(EVENT_CONTROLLER, index));
                    controllers++;
                }
                break;
            case EVENT_CONTROLLER: controller_ready(index, &controllers); break;
            }
        }
        if (!settled && monotonic_ns() - started > SETTLED_NS) {
            notify_abandon_leftovers();
            settled = true;
        }
        if (controllers || notify_listener_count())
            alone_since = monotonic_ns();
        else if (monotonic_ns() - alone_since > ORPHAN_NS)
            return;
    }
}

#define BIT(capability) (1ull << (capability))

/*
 * Tenants' calls are made here: the driver must not take them for an administrator's. What stays is what reaching into
 * tenants' processes takes, and ending those of a slice that is removed. An ordinary user's guard reaches those
 * processes that have no more than it has itself: it only drops what the driver asks about.
 */
static void drop_privileges(void)
{
    const uint64_t reaching = BIT(CAP_SYS_PTRACE) | BIT(CAP_KILL) | BIT(CAP_SETUID);
    const uint64_t asked = BIT(CAP_SYS_ADMIN) | BIT(CAP_SYS_NICE) | BIT(CAP_SYS_RAWIO) | BIT(CAP_PERFMON);
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3] = {0};

    if (syscall(SYS_capget, &header, data) < 0)
        die_with_error("capget");
    uint64_t permitted = data[0].permitted | (uint64_t)data[1].permitted << 32;
    permitted &= permitted & BIT(CAP_SYS_PTRACE) ? reaching : ~asked;
    for (int half = 0; half < 2; half++) {
        data[half].permitted = data[half].effective = (uint32_t)(permitted >> 32 * half);
        data[half].inheritable = 0;
    }
    if (syscall(SYS_capset, &header, data) < 0)
        die_with_error("capset");
}

static void usage(FILE *out)
{
    fputs("usage: vgpu-guard --socket PATH --state PATH --backend nvidia|emulated --gpu WHERE [--gpu WHERE ...] "
          "[--trace]\n"
          "       vgpu-guard --layout\n"
          "WHERE is a PCI bus id (nvidia) or a device file (emulated), or " UNGUARDED
          " for a GPU that the guard is to leave alone. "
          "--layout prints the layouts shared with Python as JSON.\n"
          "--trace says every judged call on stderr: what to send with a report about a new driver.\n",
          out);
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        {"socket", required_argument, NULL, 's'},  {"state", required_argument, NULL, 't'},
        {"backend", required_argument, NULL, 'b'}, {"gpu", required_argument, NULL, 'g'},
        {"layout", no_argument, NULL, 'l'},        {"trace", no_argument, NULL, 'T'},
        {"help", no_argument, NULL, 'h'},          {0}};
    const char *socket_path = NULL, *state = NULL, *gpus[MAX_GPUS];
    int option, guarded = 0;

    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (option) {
        case 's': socket_path = optarg; break;
        case 't': state = optarg; break;
        case 'b':
            backend = strcmp(optarg, "nvidia") == 0     ? &backend_nvidia
                      : strcmp(optarg, "emulated") == 0 ? &backend_emulated
                                                        : NULL;
            break;
        case 'g':
            if (gpu_count == MAX_GPUS)
                die("more than %d GPUs", MAX_GPUS);
            gpus[gpu_count++] = optarg;
            break;
        case 'T': notify_trace = true; break;
        case 'l': print_layout(); return 0;
        case 'h': usage(stdout); return 0;
        default: usage(stderr); return 2;
        }
    }
    if (!socket_path || !state || !backend || !gpu_count) {
        usage(stderr);
        return 2;
    }
    /* each listener and each process is a descriptor */
    struct rlimit files = {65536, 65536};
    if (setrlimit(RLIMIT_NOFILE, &files) < 0) {
        getrlimit(RLIMIT_NOFILE, &files);
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    ledger_open(state);
    for (int i = 0; i < gpu_count; i++)
        if (strcmp(gpus[i], UNGUARDED) != 0) {
            backend->open(i, gpus[i]);
            guarded++;
        }
    int signals = signal_descriptor(), server = listen_on(socket_path), epoll = epoll_create1(EPOLL_CLOEXEC);
    if (epoll < 0)
        die_with_error("epoll_create1");
    watch(epoll, server, EVENT(EVENT_CONTROL_SOCKET, server));
    watch(epoll, signals, EVENT(EVENT_CONTROL_SOCKET, signals));
    drop_privileges();
    sched_start();
    say("guarding %d GPU%s, backend %s", guarded, guarded == 1 ? "" : "s", backend->name);
    loop(epoll, server, signals);
    sched_stop();
    return 0;
}
