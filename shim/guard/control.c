#define _GNU_SOURCE
#include "control.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>

#include "backend.h"
#include "ledger.h"
#include "notify.h"
#include "reach.h"
#include "sched.h"
#include "util.h"

#define PATIENCE_MS 1000

static bool ending;

bool control_wants_end(void) { return ending; }

__attribute__((format(printf, 2, 3))) static void reply(int controller, const char *format, ...)
{
    char text[MAX_MESSAGE];
    va_list list;

    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    /* A controller that went away has a successor that asks anew. */
    if (send_message(controller, text, -1) < 0)
        say("answer to vgpud: %s", strerror(errno));
}

static bool valid_slot(int slot) { return slot >= 0 && slot < LEDGER_TENANTS; }

/* tenant SLOT GPU MEMORY MILLIPERCENT POLICY OVERSUBSCRIBE ID, with the page's descriptor unless the tenant is known */
static void set_tenant(int controller, const char *text, int fd)
{
    struct quota quota;
    int slot, gpu;
    char id[72];

    if (sscanf(text, "tenant %d %d %" SCNu64 " %u %u %u %71s", &slot, &gpu, &quota.memory, &quota.core_millipercent,
               &quota.policy, &quota.oversubscribe_percent, id) != 7 ||
        !valid_slot(slot) || gpu < 0 || gpu >= gpu_count || !quota.core_millipercent ||
        quota.core_millipercent > 100000 || quota.policy > VGPU_POLICY_BURST || quota.oversubscribe_percent < 100) {
        reply(controller, "error malformed: %s", text);
        return;
    }
    ledger_lock();
    bool ok = ledger_set_tenant(slot, id, gpu, &quota, fd);
    ledger_unlock();
    ok = ok && notify_set_tenant(slot);
    sched_wake();
    reply(controller, ok ? "ok" : "error the tenant's page could not be mapped, or there is no memory left");
}

static void add_listener(int controller, const char *text, int fd)
{
    char old[8] = "";
    int slot;

    if (sscanf(text, "listener %d %7s", &slot, old) < 1 || !valid_slot(slot) || fd < 0 || !tenants[slot].live) {
        reply(controller, "error malformed: %s", text);
        if (fd >= 0)
            close(fd);
        return;
    }
    reply(controller,
          notify_add_listener(slot, fd, strcmp(old, "old") == 0) ? "ok" : "error no room for another listener");
    sched_wake();
}

static void remove_tenant(int controller, const char *text)
{
    int slot;

    if (sscanf(text, "remove %d", &slot) != 1 || !valid_slot(slot)) {
        reply(controller, "error malformed: %s", text);
        return;
    }
    notify_remove_tenant(slot);
    ledger_lock();
    ledger_remove_tenant(slot);
    ledger_unlock();
    sched_wake();
    reply(controller, "ok");
}

/* managed SLOT PID BYTES: what a process' shim says of its managed memory, in all. Answers "ok" or "full". */
static void set_managed(int controller, const char *text)
{
    int slot, pid;
    uint64_t bytes;

    if (sscanf(text, "managed %d %d %" SCNu64, &slot, &pid, &bytes) != 3 || !valid_slot(slot) || !tenants[slot].live ||
        pid <= 0 || (uint32_t)pid & MANAGED_ROOTS) {
        reply(controller, "error malformed: %s", text);
        return;
    }
    if (!notify_note_process(slot, (pid_t)pid)) { /* its end would go unnoticed */
        reply(controller, "error no such process, or too many");
        return;
    }
    ledger_lock();
    bool fits = ledger_set_managed(slot, (pid_t)pid, bytes);
    ledger_unlock();
    reply(controller, fits ? "ok" : "ok full");
}

/* memory GPU PID: how much of the GPU the process' clients have by the driver's own account, names of others' not. */
static void tell_memory(int controller, const char *text)
{
    int gpu, pid;
    uint64_t bytes;

    if (sscanf(text, "memory %d %d", &gpu, &pid) != 2 || gpu < 0 || gpu >= gpu_count || pid <= 0) {
        reply(controller, "error malformed: %s", text);
        return;
    }
    if (!backend->memory_of || !backend->memory_of(gpu, &(pid_t){pid}, 1, &bytes))
        reply(controller, "error the driver does not say");
    else
        reply(controller, "ok %" PRIu64, bytes);
}

static bool give_listener(int slot, int fd, void *context)
{
    int controller = *(int *)context;
    char text[64];

    snprintf(text, sizeof text, "listener %d", slot);
    /* its socket holds a few hundred messages: wait for vgpud to take some */
    struct pollfd room = {.fd = controller, .events = POLLOUT};
    return poll(&room, 1, PATIENCE_MS) == 1 && send_message(controller, text, fd) >= 0;
}

/* Hand back every listener, for a vgpud that was restarted. */
static void give_listeners(int controller)
{
    notify_each_listener(give_listener, &controller);
    reply(controller, "ok");
}

static void probe(int controller, const char *text)
{
    int pid;

    if (sscanf(text, "probe %d", &pid) != 1) {
        reply(controller, "error malformed: %s", text);
        return;
    }
    int error = reach_can((pid_t)pid);
    reply(controller, error ? "error %s" : "ok", error ? strerror(error) : "");
}

void control_message(int controller, char *text, int fd)
{
    if (strncmp(text, "tenant ", 7) == 0) {
        set_tenant(controller, text, fd);
    } else if (strncmp(text, "listener ", 9) == 0) {
        add_listener(controller, text, fd);
        return; /* the descriptor is the listener now */
    } else if (strncmp(text, "remove ", 7) == 0) {
        remove_tenant(controller, text);
    } else if (strncmp(text, "managed ", 8) == 0) {
        set_managed(controller, text);
    } else if (strncmp(text, "memory ", 7) == 0) {
        tell_memory(controller, text);
    } else if (strncmp(text, "probe ", 6) == 0) {
        probe(controller, text);
    } else if (strcmp(text, "listeners") == 0) {
        give_listeners(controller);
    } else if (strcmp(text, "hello") == 0) {
        reply(controller, "ok %d %d %s", CONTROL_PROTOCOL, (int)getpid(), backend->name);
    } else if (strcmp(text, "end") == 0) {
        ending = true;
        reply(controller, "ok");
    } else {
        reply(controller, "error unknown message: %.200s", text);
    }
    if (fd >= 0)
        close(fd);
}
