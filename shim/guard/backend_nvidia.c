#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "backend.h"
#include "rm_abi.h"
#include "util.h"

/* The guard's own client of the driver. It holds no tenant's descriptor: one would keep a dead tenant's memory alive.
 */
static struct {
    int fd;
    uint32_t client, device, subdevice, instance;
} gpus[MAX_GPUS];

static uint32_t rm_alloc(int index, uint32_t parent, uint32_t handle, uint32_t class, void *params, uint32_t size,
                         uint32_t *out)
{
    struct nvos64 call = {.root = gpus[index].client,
                          .parent = parent,
                          .object = handle,
                          .class = class,
                          .params = (uintptr_t)params,
                          .params_size = size};

    if (ioctl(gpus[index].fd, NV_REQUEST(NV_ESC_RM_ALLOC, struct nvos64), &call) < 0)
        return NV_ERR_OPERATING_SYSTEM;
    *out = call.object;
    return call.status;
}

static uint32_t rm_control(int index, uint32_t object, uint32_t command, void *params, uint32_t size)
{
    struct nvos54 call = {.client = gpus[index].client,
                          .object = object,
                          .command = command,
                          .params = (uintptr_t)params,
                          .params_size = size};

    if (ioctl(gpus[index].fd, NV_REQUEST(NV_ESC_RM_CONTROL, struct nvos54), &call) < 0)
        return NV_ERR_OPERATING_SYSTEM;
    return call.status;
}

/* "00000000:1B:00.0", as NVML writes it, to the driver's own number and minor. */
static void find_card(int index, const char *bus_id, struct nv_card_info *out)
{
    struct nv_card_info cards[NV_MAX_CARDS] = {{0}};
    unsigned domain, bus, slot;

    if (sscanf(bus_id, "%x:%x:%x", &domain, &bus, &slot) != 3)
        die("'%s' is not a PCI bus id like 00000000:1B:00.0", bus_id);
    unsigned long request = _IOC(_IOC_READ | _IOC_WRITE, NV_IOCTL_MAGIC, NV_ESC_CARD_INFO, sizeof cards);
    if (ioctl(gpus[index].fd, request, cards) < 0)
        die_with_error("NV_ESC_CARD_INFO");
    for (int i = 0; i < NV_MAX_CARDS; i++)
        if (cards[i].valid && cards[i].domain == domain && cards[i].bus == bus && cards[i].slot == slot) {
            *out = cards[i];
            return;
        }
    die("no GPU at PCI bus id %s", bus_id);
}

static void nvidia_open(int index, const char *where)
{
    struct nv_card_info card = {0};
    struct nv0000_gpu_id_info info = {0};
    struct nv0080_alloc_params device = {0};
    struct nv2080_alloc_params subdevice = {0};
    char path[64];
    uint32_t status;

    gpus[index].fd = open("/dev/nvidiactl", O_RDWR | O_CLOEXEC);
    if (gpus[index].fd < 0)
        die_with_error("open /dev/nvidiactl");
    find_card(index, where, &card);
    snprintf(path, sizeof path, "/dev/nvidia%u", card.minor);
    /* Class 0x80 is only given to a process that has the GPU itself open. */
    int device_fd = open(path, O_RDWR | O_CLOEXEC); /* for life */
    if (device_fd < 0)
        die_with_error("open %s", path);
    status = rm_alloc(index, 0, 0, NV01_ROOT_CLIENT, NULL, 0, &gpus[index].client);
    info.gpu_id = card.gpu_id;
    if (status == NV_OK)
        status = rm_control(index, gpus[index].client, NV0000_CTRL_CMD_GPU_GET_ID_INFO_V2, &info, sizeof info);
    device.device_id = gpus[index].instance = info.device_instance;
    subdevice.subdevice_id = info.subdevice_instance;
    if (status == NV_OK)
        status = rm_alloc(index, gpus[index].client, 0x5C000001, NV01_DEVICE_0, &device, sizeof device,
                          &gpus[index].device);
    if (status == NV_OK)
        status = rm_alloc(index, gpus[index].device, 0x5C000002, NV20_SUBDEVICE_0, &subdevice, sizeof subdevice,
                          &gpus[index].subdevice);
    if (status != NV_OK)
        die("the driver gave the guard no handle on %s: status 0x%x", path, status);
}

static int nvidia_gpu_of_device(int fd, const struct nv0080_alloc_params *params)
{
    (void)fd;
    for (int i = 0; i < gpu_count; i++)
        if (gpus[i].instance == params->device_id)
            return i;
    return -1;
}

static enum file_kind nvidia_kind(int fd)
{
    struct stat info;

    if (fstat(fd, &info) < 0 || !S_ISCHR(info.st_mode) || major(info.st_rdev) != NV_MAJOR)
        return FILE_OTHER;
    return minor(info.st_rdev) == NV_MINOR_CONTROL ? FILE_CONTROL : FILE_GPU;
}

static int nvidia_perform(int fd, pid_t pid, unsigned long request, void *arg)
{
    (void)pid;
    return ioctl(fd, request, arg) < 0 ? -errno : 0;
}

static uint32_t nvidia_set_channels(int index, const struct channel *channels, int count, bool on)
{
    struct nv2080_fifo_disable_channels params = channel_request(channels, count, on);

    return rm_control(index, gpus[index].subdevice, NV2080_CTRL_CMD_FIFO_DISABLE_CHANNELS, &params, sizeof params);
}

const struct backend backend_nvidia = {
    .name = "nvidia",
    .open = nvidia_open,
    .gpu_of_device = nvidia_gpu_of_device,
    .kind = nvidia_kind,
    .perform = nvidia_perform,
    .set_channels = nvidia_set_channels,
    .settle_ns = 20000000,
};
