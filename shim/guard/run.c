/*
 * vgpu-run: puts a command, and all its children for good, into a slice of a GPU.
 *
 * It runs inside the tenant, as the tenant's user: it installs a seccomp filter whose notifications go to
 * the node daemon, hands the listener over the tenant's own socket, and execs the command. No answer from
 * the daemon means no start.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/un.h>

#include "rm_abi.h"
#include "slice_page.h"
#include "util.h"

#if defined(__x86_64__)
#define NATIVE_ARCH AUDIT_ARCH_X86_64
#define I386_IOCTL 54
#define I386_CLONE 120
#define I386_CLONE3 435
#define FOREIGN_SIZE (3 + SHARED_DESCRIPTORS_SIZE)
#elif defined(__aarch64__)
#define NATIVE_ARCH AUDIT_ARCH_AARCH64
#define FOREIGN_SIZE 1
#endif

#ifndef SECCOMP_FILTER_FLAG_SPEC_ALLOW /* Linux 4.17 */
#define SECCOMP_FILTER_FLAG_SPEC_ALLOW (1UL << 2)
#endif
#ifndef SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV /* Linux 5.19 */
#define SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV (1UL << 5)
#endif
#define X32_SYSCALL_BIT 0x40000000
#define JOIN_SECONDS 30
#define AGAIN_MS 200

#define LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
#define RETURN(action) BPF_STMT(BPF_RET | BPF_K, (action))
#define IF_EQUAL(value, then, otherwise) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (value), (then), (otherwise))

/*
 * What a process is held still for (still.h) nobody else may change: so the guard has to know of processes that share
 * descriptors. clone3 has its flags in memory, so it is "not there", and who asks for it goes on with clone.
 */
#define SHARED_DESCRIPTORS(clone, clone3, action)                                                                     \
    IF_EQUAL(clone3, 0, 1), RETURN(SECCOMP_RET_ERRNO | ENOSYS), IF_EQUAL(clone, 0, 4),                                \
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[0])),                                   \
        BPF_STMT(BPF_ALU | BPF_AND | BPF_K, CLONE_FILES | CLONE_THREAD), IF_EQUAL(CLONE_FILES, 0, 1), RETURN(action), \
        RETURN(SECCOMP_RET_ALLOW)
#define SHARED_DESCRIPTORS_SIZE 8

/*
 * ioctl numbers are told by their low byte alone, for so does the driver: it looks at neither magic nor direction.
 * A few terminal calls share a byte and take the longer way; kernel launches make no system call at all.
 */
static int install_filter(void)
{
    struct sock_filter program[] = {
        LOAD(arch),
        IF_EQUAL(NATIVE_ARCH, FOREIGN_SIZE, 0),
#ifdef I386_IOCTL
        /* the 32-bit entry reaches the same driver: no ioctl there */
        LOAD(nr),
        IF_EQUAL(I386_IOCTL, 0, 1),
        RETURN(SECCOMP_RET_ERRNO | ENOTTY),
        SHARED_DESCRIPTORS(I386_CLONE, I386_CLONE3, SECCOMP_RET_ERRNO | EPERM),
#else
        RETURN(SECCOMP_RET_ERRNO | ENOSYS),
#endif
        LOAD(nr),
        BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, X32_SYSCALL_BIT, 0, 1),
        RETURN(SECCOMP_RET_ERRNO | ENOSYS),
        IF_EQUAL(__NR_ioctl, 0, 13),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[1])),
        BPF_STMT(BPF_ALU | BPF_AND | BPF_K, 0xFF),
        IF_EQUAL(NV_ESC_RM_CONTROL, 8, 0),
        IF_EQUAL(NV_ESC_RM_ALLOC, 7, 0),
        IF_EQUAL(NV_ESC_RM_FREE, 6, 0),
        IF_EQUAL(NV_ESC_RM_ALLOC_OBJECT, 5, 0),
        IF_EQUAL(NV_ESC_RM_VID_HEAP_CONTROL, 4, 0),
        IF_EQUAL(NV_ESC_RM_DUP_OBJECT, 3, 0),
        IF_EQUAL(NV_ESC_RM_IDLE_CHANNELS, 2, 0),
        IF_EQUAL(NV_ESC_EXPORT_TO_DMABUF_FD, 1, 0),
        IF_EQUAL(NV_ESC_IOCTL_XFER_CMD, 0, 1),
        RETURN(SECCOMP_RET_USER_NOTIF),
        RETURN(SECCOMP_RET_ALLOW),
        SHARED_DESCRIPTORS(__NR_clone, __NR_clone3, SECCOMP_RET_USER_NOTIF),
    };
    struct sock_fprog filter = {sizeof program / sizeof *program, program};

    /* A filter needs this or CAP_SYS_ADMIN; it also keeps sudo from shedding the filter. */
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        die_with_error("prctl PR_SET_NO_NEW_PRIVS");
    /* Before Linux 5.16 a filter otherwise switches off what makes loads fast (spec_store_bypass); it guards no secret.
     */
    unsigned long least = SECCOMP_FILTER_FLAG_NEW_LISTENER | SECCOMP_FILTER_FLAG_SPEC_ALLOW;
    unsigned long flags = least | SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;
    int fd = (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &filter);
    /* Before Linux 5.19 a signal in mid-call makes the call run twice; slower, and still accounted. */
    if (fd < 0 && errno == EINVAL)
        fd = (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, least, &filter);
    if (fd < 0 && errno == EBUSY)
        die("this process is in a GPU slice already, and a slice can't hold another: run the command as it is");
    if (fd < 0)
        die_with_error("seccomp SECCOMP_FILTER_FLAG_NEW_LISTENER");
    return fd;
}

static int connect_to(const char *dir)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct timeval patience = {.tv_sec = JOIN_SECONDS};
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

    if (fd < 0)
        die_with_error("socket");
    if (snprintf(address.sun_path, sizeof address.sun_path, "%s/%s", dir, VGPU_JOIN_SOCKET) >=
        (int)sizeof address.sun_path)
        die("%s is too long for a socket's name", dir);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0)
        die_with_error("%s: is the node daemon (jupyter vgpu node) running?", address.sun_path);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    return fd;
}

/* Ask one thing, get one line. */
static void ask(int socket, const char *question, int fd, char answer[MAX_MESSAGE])
{
    int unexpected;

    if (send_message(socket, question, fd) < 0)
        die_with_error("asking the node daemon to %s", question);
    ssize_t got = receive_message(socket, answer, MAX_MESSAGE, &unexpected);
    if (got < 0)
        die_with_error("no answer from the node daemon within %d s", JOIN_SECONDS);
    if (got == 0)
        die("the node daemon refused this slice: it may have been removed");
    if (unexpected >= 0)
        close(unexpected);
}

/* Which tier holds here? The daemon knows whether it can reach into this process; only this process knows its kernel.
 */
static const char *join(const char *dir)
{
    static char answer[MAX_MESSAGE];
    uint32_t action = SECCOMP_RET_USER_NOTIF;
    CLEANUP_FD int socket = connect_to(dir);

    if (syscall(SYS_seccomp, SECCOMP_GET_ACTION_AVAIL, 0, &action) < 0) {
        ask(socket, "shim this kernel has no seccomp user notification (Linux 5.0)", -1, answer);
    } else {
        ask(socket, "probe", -1, answer);
        /* a guard that ended has a successor in a moment */
        for (int tries = 0; strncmp(answer, "away ", 5) == 0 && tries < JOIN_SECONDS * 1000 / AGAIN_MS; tries++) {
            poll(NULL, 0, AGAIN_MS);
            ask(socket, "probe", -1, answer);
        }
        if (strcmp(answer, "guard") == 0) {
            CLEANUP_FD int listener = install_filter();
            ask(socket, "join", listener, answer);
        }
    }
    if (strcmp(answer, "guard") == 0 || strcmp(answer, "shim") == 0)
        return answer;
    const char *why = strchr(answer, ' '); /* after "refused" or "away" */
    die("%s", why ? why + 1 : answer);
}

static void prepend(const char *name, const char *value)
{
    const char *old = getenv(name);
    char text[PATH_MAX * 4];

    if (snprintf(text, sizeof text, old && *old ? "%s:%s" : "%s", value, old) >= (int)sizeof text)
        die("%s is too long", name);
    if (setenv(name, text, 1) < 0)
        die_with_error("setenv %s", name);
}

/* The shim and the emulated driver lie beside this program: <here>/../lib, <here>/../emulator. */
static void set_environment(const char *tier)
{
    char here[PATH_MAX], path[PATH_MAX + 32];
    ssize_t length = readlink("/proc/self/exe", here, sizeof here - 1);

    if (length < 0)
        die_with_error("readlink /proc/self/exe");
    here[length] = 0;
    for (int up = 0; up < 2; up++)
        if (strrchr(here, '/'))
            *strrchr(here, '/') = 0;
    snprintf(path, sizeof path, "%s/lib/libvgpu.so", here);
    if (access(path, R_OK) < 0)
        die_with_error("%s", path);
    prepend("LD_PRELOAD", path);
    if (getenv("VGPU_EMULATED_DIR")) {
        snprintf(path, sizeof path, "%s/emulator", here);
        prepend("LD_LIBRARY_PATH", path);
    }
    if (setenv(VGPU_ENV_TIER, tier, 1) < 0)
        die_with_error("setenv");
}

static void usage(FILE *out)
{
    fputs("usage: vgpu-run [--dir DIRECTORY] [--] COMMAND [ARGUMENT ...]\n"
          "Runs COMMAND in the GPU slice whose directory is DIRECTORY (default: $" VGPU_ENV_DIR ").\n"
          "Exit codes: the command's own; 125 when the slice can't be entered, 126 and 127 as a shell gives them.\n",
          out);
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        {"dir", required_argument, NULL, 'd'}, {"help", no_argument, NULL, 'h'}, {0}};
    const char *dir = getenv(VGPU_ENV_DIR);
    int option;

    while ((option = getopt_long(argc, argv, "+", options, NULL)) != -1) {
        switch (option) {
        case 'd': dir = optarg; break;
        case 'h': usage(stdout); return 0;
        default: usage(stderr); return 125;
        }
    }
    if (optind >= argc || !dir) {
        if (!dir)
            fputs("vgpu-run: no slice named: give --dir or set " VGPU_ENV_DIR "\n", stderr);
        usage(stderr);
        return 125;
    }
    if (setenv(VGPU_ENV_DIR, dir, 1) < 0)
        die_with_error("setenv");
    set_environment(join(dir));
    execvp(argv[optind], argv + optind);
    int code = errno == ENOENT ? 127 : 126;
    say("%s: %s", argv[optind], strerror(errno));
    return code;
}
