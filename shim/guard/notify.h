/* The notification loop: receives tenants' ioctls, has them judged, performs and answers. */
#ifndef VGPU_GUARD_NOTIFY_H
#define VGPU_GUARD_NOTIFY_H

#include <stdbool.h>
#include <sys/types.h>

#define MAX_LISTENERS 4096
#define MAX_PROCESSES 8192
#define MAX_TENANT_PROCESSES 1024

struct listener {
    int fd, slot;
}; /* fd -1: free */
extern struct listener listeners[MAX_LISTENERS];
extern bool notify_trace; /* say every judged call on stderr */

void notify_init(int epoll);
bool notify_add_listener(int slot, int fd); /* takes the descriptor */
/* Processes of a predecessor's time: watch those that live, free what the others held. */
void notify_adopt_processes(int slot);
void notify_remove_tenant(int slot);
int notify_listener_count(void);
void notify_listener_ready(int index);
void notify_listener_gone(int index);
void notify_process_exited(int index);
/* Can the guard read this process' memory and take its descriptors? 0 or errno. */
int notify_can_guard(pid_t pid);

/* What an epoll event is about: kind in the high half, index in the low. */
enum event_kind { EVENT_CONTROL_SOCKET, EVENT_CONTROLLER, EVENT_LISTENER, EVENT_PROCESS };
#define EVENT(kind, index) ((uint64_t)(kind) << 32 | (uint32_t)(index))

#endif
