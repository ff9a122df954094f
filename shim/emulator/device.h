/*
 * The emulated GPU's kernel-driver half: one shared file per device, spoken to with the real driver's
 * ioctl numbers and structs. Linked into the emulated libcuda (an ioctl that nobody intercepts) and into
 * vgpu-guard (an ioctl that the guard performs for a tenant), so both run the same code.
 */
#ifndef VGPU_EMULATOR_DEVICE_H
#define VGPU_EMULATOR_DEVICE_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define EMU_MAGIC 0x554D4547u
#define EMU_VERSION 2u
#define EMU_CLIENTS 1024
#define EMU_OBJECTS 65536
#define EMU_RING 1024 /* pieces of work that a channel takes before it is fetched from, one less */
#define EMU_UUID_LENGTH 48
#define EMU_NAME_LENGTH 64
#define EMU_MAX_DEVICES 64
#define EMU_CONTEXT_BYTES (64ull << 20) /* what a context takes before the first user byte */
#define EMU_GRANULE (2ull << 20)        /* device memory is handed out in these */
#define EMU_DRIVER_VERSION "580.0-emulated"

#define EMU_ENV_DIR "VGPU_EMULATED_DIR"       /* where device files live */
#define EMU_ENV_MEMORY "VGPU_EMULATED_MEMORY" /* bytes of each device made */
#define EMU_ENV_COUNT "VGPU_EMULATED_GPUS"    /* how many devices to make */
#define EMU_ENV_MIG "VGPU_EMULATED_MIG"       /* into how many parts the last of them is divided, as by MIG */
#define EMU_MAX_PARTS 7
#define EMU_PART_INFIX ".mig" /* in a path, between the divided device's and the part's number */

struct emu_client {
    uint32_t handle; /* 0: free */
    int32_t pid;     /* as the driver saw it: the node's number under the guard */
    uint64_t busy_ns, launches;
};

struct emu_object {
    uint32_t client, parent, handle, class; /* handle 0: free */
    uint64_t bytes;
    uint32_t disabled; /* channels: a futex word, how often taken off the GPU and not put back */
    uint32_t timeslice_us;
    uint32_t put, get;   /* channels: how far the ring was filled, and fetched while it was on; modulo EMU_RING */
    uint32_t unfinished; /* pieces of work */
};

struct emu_device {
    uint32_t magic, version;
    uint64_t memory_total, memory_used;
    char uuid[EMU_UUID_LENGTH], name[EMU_NAME_LENGTH];
    uint32_t next_client, object_end;
    pthread_mutex_t lock;
    struct emu_client clients[EMU_CLIENTS];
    struct emu_object objects[EMU_OBJECTS];
};

/* A device opened by this process. */
struct emu_driver {
    struct emu_device *device;
    char path[512];
    int fd;       /* what an application would call its /dev/nvidiactl */
    int probe_fd; /* a second open file, to ask who still holds theirs */
};

/*
 * Paths of the devices that programs can use, after making those that the environment asks for: whole ones, and the
 * parts of a divided one instead of it. Returns their number.
 */
int emu_discover(char paths[][512], int max);

/* Returns 0 or -errno. */
int emu_open(struct emu_driver *driver, const char *path);
void emu_close(struct emu_driver *driver);

/* Does ioctl(fd, request, arg) for process `pid`, as the kernel would. Returns 0 or -errno. */
int emu_ioctl(struct emu_driver *driver, int fd, pid_t pid, unsigned long request, void *arg);

/* Drop what clients left behind whose every descriptor is closed. */
void emu_reap(struct emu_driver *driver);

/* Does any process still have the client's file open? */
bool emu_client_lives(struct emu_driver *driver, uint32_t client);

struct emu_object *emu_find(struct emu_device *device, uint32_t client, uint32_t handle);
uint64_t emu_free_bytes(struct emu_driver *driver);
/* What the clients hold that a process made. */
uint64_t emu_process_bytes(struct emu_driver *driver, pid_t pid);

/* Sleep until the channel is on the GPU. */
void emu_wait_enabled(struct emu_object *channel);

#endif
