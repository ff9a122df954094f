#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "backend.h"
#include "device.h"
#include "rm_abi.h"
#include "util.h"

static struct emu_driver drivers[MAX_GPUS];

static void emulated_open(int index, const char *where)
{
    int rc = emu_open(&drivers[index], where);
    if (rc < 0) {
        errno = -rc;
        die_with_error("emulated GPU %s", where);
    }
}

static struct emu_driver *driver_of(int fd)
{
    struct stat theirs, ours;

    if (fstat(fd, &theirs) < 0)
        return NULL;
    for (int i = 0; i < gpu_count; i++)
        if (drivers[i].device && fstat(drivers[i].fd, &ours) == 0 && ours.st_dev == theirs.st_dev &&
            ours.st_ino == theirs.st_ino)
            return &drivers[i];
    return NULL;
}

static int emulated_gpu_of_device(int fd, const struct nv0080_alloc_params *params)
{
    const struct emu_driver *driver = driver_of(fd);

    (void)params; /* each emulated GPU is a file of its own */
    return driver ? (int)(driver - drivers) : -1;
}

static enum file_kind emulated_kind(int fd) { return driver_of(fd) ? FILE_CONTROL : FILE_OTHER; }

static bool emulated_client_lives(uint32_t root)
{
    for (int i = 0; i < gpu_count; i++)
        if (drivers[i].device && emu_client_lives(&drivers[i], root))
            return true;
    return false;
}

static int emulated_perform(int fd, pid_t pid, unsigned long request, void *arg)
{
    struct emu_driver *driver = driver_of(fd);
    return driver ? emu_ioctl(driver, fd, pid, request, arg) : -ENOTTY;
}

static uint32_t emulated_set_channels(int index, const struct channel *channels, int count, bool on)
{
    struct nv2080_fifo_disable_channels params = channel_request(channels, count, on);
    struct nvos54 call = {
        .command = NV2080_CTRL_CMD_FIFO_DISABLE_CHANNELS, .params = (uintptr_t)&params, .params_size = sizeof params};

    int rc = emu_ioctl(&drivers[index], drivers[index].fd, getpid(), NV_REQUEST(NV_ESC_RM_CONTROL, struct nvos54),
                       &call);
    return rc < 0 ? NV_ERR_OPERATING_SYSTEM : call.status;
}

static bool emulated_memory_of(int index, const pid_t *pids, int count, uint64_t *bytes)
{
    *bytes = 0;
    if (!drivers[index].device)
        return false;
    for (int i = 0; i < count; i++)
        *bytes += emu_process_bytes(&drivers[index], pids[i]);
    return true;
}

static bool emulated_share_ring(int index, int fd, const struct channel *channel, uint32_t userd)
{
    (void)index, (void)fd, (void)channel, (void)userd; /* it is in the device itself */
    return true;
}

static bool emulated_open_ring(int index, const struct channel *channel, const struct ring_place *place,
                               struct ring *ring)
{
    const struct emu_object *object = emu_find(drivers[index].device, channel->root, channel->handle);

    (void)place;
    if (object)
        *ring = (struct ring){.get = &object->get, .put = &object->put};
    return object != NULL;
}

static void emulated_close_ring(int index, struct ring *ring)
{
    (void)index;
    *ring = (struct ring){0};
}

const struct backend backend_emulated = {
    .name = "emulated",
    .open = emulated_open,
    .gpu_of_device = emulated_gpu_of_device,
    .kind = emulated_kind,
    .client_lives = emulated_client_lives,
    .performs_roots = true,
    .perform = emulated_perform,
    .set_channels = emulated_set_channels,
    .share_ring = emulated_share_ring,
    .open_ring = emulated_open_ring,
    .close_ring = emulated_close_ring,
    .memory_of = emulated_memory_of,
    .settle_ns = 1000000,
};
