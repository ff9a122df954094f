#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "backend.h"
#include "rm_abi.h"
#include "util.h"

/* The guard's own client of the driver. It holds no tenant's descriptor: one would keep a dead tenant's memory alive.
 */
static struct {
    int fd;
    uint32_t client, device, subdevice, instance, minor;
    struct mapping *mappings;
} gpus[MAX_GPUS];

static bool ask(int fd, unsigned long request, void *call, const uint32_t *status)
{
    return ioctl(fd, request, call) >= 0 && *status == NV_OK;
}

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

/* --- is this the driver that the guard knows? --- */

/* Released branches on which every test of tests/gpu passed. Others are tried, and spoken of. */
static const char *const tested_branches[] = {"580."};

static const char *driver_version(void)
{
    static char text[64];
    CLEANUP_FD int fd = open("/sys/module/nvidia/version", O_RDONLY | O_CLOEXEC);
    ssize_t got = fd < 0 ? -1 : read(fd, text, sizeof text - 1);

    text[got > 0 ? got : 0] = 0;
    text[strcspn(text, "\n")] = 0;
    return *text ? text : "of unknown version";
}

static bool is_tested(const char *version)
{
    for (size_t i = 0; i < sizeof tested_branches / sizeof *tested_branches; i++)
        if (strncmp(version, tested_branches[i], strlen(tested_branches[i])) == 0)
            return true;
    return false;
}

/* Memory is given in the layout that the ledger reads, at least as much as was asked for, and taken back. */
static const char *try_memory(int index)
{
    const uint64_t asked = 3 << 20;
    struct nv_memory_allocation_params memory = {.owner = 1, .size = asked};
    struct nvos00 gone = {.root = gpus[index].client};
    uint32_t handle;

    if (rm_alloc(index, gpus[index].device, 0x5C000003, NV01_MEMORY_LOCAL_USER, &memory, sizeof memory, &handle) !=
        NV_OK)
        return "video memory can't be had by class 0x40";
    gone.object = handle;
    if (!ask(gpus[index].fd, NV_REQUEST(NV_ESC_RM_FREE, struct nvos00), &gone, &gone.status))
        return "what was allocated can't be freed";
    if (memory.size < asked || memory.size > 16 * asked)
        return "the size of an allocation is not where it was";
    return NULL;
}

/* Everything rests on it: whoever has a file is known by it, and no other file reaches its clients. */
static const char *try_client_ties(int index)
{
    uint32_t ids[NV0000_PROBED_IDS_WORDS];
    struct nvos54 question = client_question(gpus[index].client, ids);
    CLEANUP_FD int other = open("/dev/nvidiactl", O_RDWR | O_CLOEXEC);

    if (!ask(gpus[index].fd, NV_REQUEST(NV_ESC_RM_CONTROL, struct nvos54), &question, &question.status))
        return "a client can't be asked for its GPUs";
    if (other < 0 || ioctl(other, NV_REQUEST(NV_ESC_RM_CONTROL, struct nvos54), &question) < 0)
        return "a second file of the driver can't be had";
    return question.status == NV_OK ? "a client can be used from another file than its own" : NULL;
}

/* The switch for channels is there, and says of a channel that is not that there is none. */
static const char *try_switch(int index)
{
    struct channel nobody = {gpus[index].client, 0x5CFFFFFF};
    struct nv2080_fifo_disable_channels request = channel_request(&nobody, 1, true);
    uint32_t status = rm_control(index, gpus[index].subdevice, NV2080_CTRL_CMD_FIFO_DISABLE_CHANNELS, &request,
                                 sizeof request);

    if (status == NV_OK)
        return "the switch for channels takes any number";
    if (status == NV_ERR_NOT_SUPPORTED || status == NV_ERR_INSUFFICIENT_PERMISSIONS ||
        status == NV_ERR_OPERATING_SYSTEM)
        return "channels can't be switched";
    return NULL;
}

static void test_driver(int index)
{
    static const char *(*const tests[])(int) = {try_memory, try_client_ties, try_switch};
    const char *version = driver_version();

    for (size_t i = 0; i < sizeof tests / sizeof *tests; i++) {
        const char *failure = tests[i](index);
        if (failure)
            die("the NVIDIA driver %s is not one that the guard can hold tenants on: %s. It was tested with %sx",
                version, failure, tested_branches[0]);
    }
    if (index == 0 && !is_tested(version))
        say("the NVIDIA driver %s is newer or older than those tested (%sx); the self-test passed", version,
            tested_branches[0]);
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
    gpus[index].minor = card.minor;
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
    test_driver(index);
}

static int nvidia_gpu_of_device(int fd, const struct nv0080_alloc_params *params)
{
    (void)fd;
    for (int i = 0; i < gpu_count; i++)
        if (gpus[i].client && gpus[i].instance == params->device_id)
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

static bool nvidia_memory_of(int index, const pid_t *pids, int count, uint64_t *bytes)
{
    struct nv2080_get_pid_info question;

    *bytes = 0;
    if (!gpus[index].client)
        return false;
    for (int at = 0; at < count; at += NV2080_PID_INFO_MAX) {
        question = (struct nv2080_get_pid_info){.count = count - at < NV2080_PID_INFO_MAX ? (uint32_t)(count - at)
                                                                                          : NV2080_PID_INFO_MAX};
        for (uint32_t i = 0; i < question.count; i++)
            question.list[i] = (struct nv2080_pid_info){.pid = (uint32_t)pids[at + (int)i],
                                                        .index = NV2080_PID_INFO_VIDEO_MEMORY_USAGE};
        if (rm_control(index, gpus[index].subdevice, NV2080_CTRL_CMD_GPU_GET_PID_INFO, &question, sizeof question) !=
            NV_OK)
            return false;
        for (uint32_t i = 0; i < question.count; i++)
            if (question.list[i].result == NV_OK) /* else it has no client any more */
                *bytes += question.list[i].memory_private + question.list[i].memory_shared_owned;
    }
    return true;
}

/* --- rings: the memory that a client's channels keep their pointers in, USERD, mapped once for all of them --- */

#define USERD_BYTES_MAX (64u << 20)

struct mapping {
    struct mapping *next;
    uint32_t root, memory, handle; /* handle: the guard's own name of it, so that it can't be freed under the map */
    void *address;
    uint64_t size;
    int users;
};

/* By default only clients of the same user may have names of each other's memory. */
static bool nvidia_share_ring(int index, int fd, const struct channel *channel, uint32_t userd)
{
    struct nvos57 share = {.client = channel->root,
                           .object = userd,
                           .target = gpus[index].client,
                           .access = RS_ACCESS_DUP_OBJECT_MASK,
                           .type = RS_SHARE_TYPE_CLIENT};

    return userd && ask(fd, NV_REQUEST(NV_ESC_RM_SHARE, struct nvos57), &share, &share.status);
}

static bool take_name(int index, const struct mapping *mapping)
{
    struct nvos55 dup = {.client = gpus[index].client,
                         .parent = gpus[index].device,
                         .object = mapping->handle,
                         .client_source = mapping->root,
                         .object_source = mapping->memory};

    return ask(gpus[index].fd, NV_REQUEST(NV_ESC_RM_DUP_OBJECT, struct nvos55), &dup, &dup.status);
}

static void drop_name(int index, const struct mapping *mapping)
{
    struct nvos00 call = {.root = gpus[index].client, .parent = gpus[index].device, .object = mapping->handle};

    if (!ask(gpus[index].fd, NV_REQUEST(NV_ESC_RM_FREE, struct nvos00), &call, &call.status))
        say("a tenant's memory can't be let go: status 0x%x", call.status);
}

/* The driver ties a map to a fresh descriptor of the GPU's node. */
static bool map_name(int index, struct mapping *mapping)
{
    char path[64];

    snprintf(path, sizeof path, "/dev/nvidia%u", gpus[index].minor);
    CLEANUP_FD int fd = open(path, O_RDWR | O_CLOEXEC);
    struct nvos33_with_fd call = {.client = gpus[index].client,
                                  .device = gpus[index].device,
                                  .memory = mapping->handle,
                                  .length = mapping->size,
                                  .flags = NVOS33_FLAGS_ACCESS_READ_ONLY,
                                  .fd = fd};

    if (fd < 0 || !ask(gpus[index].fd, NV_REQUEST(NV_ESC_RM_MAP_MEMORY, struct nvos33_with_fd), &call, &call.status))
        return false;
    mapping->address = mmap(NULL, mapping->size, PROT_READ, MAP_SHARED, fd, 0);
    return mapping->address != MAP_FAILED;
}

static struct mapping *find_mapping(int index, uint32_t root, uint32_t memory)
{
    struct mapping *mapping = gpus[index].mappings;

    while (mapping && (mapping->root != root || mapping->memory != memory))
        mapping = mapping->next;
    return mapping;
}

static struct mapping *make_mapping(int index, uint32_t root, uint32_t memory, uint64_t size)
{
    static uint32_t last = 0x5C010000; /* above the guard's own, and each once */
    struct mapping *mapping = calloc(1, sizeof *mapping);

    if (!mapping)
        return NULL;
    *mapping = (struct mapping){.next = gpus[index].mappings,
                                .root = root,
                                .memory = memory,
                                .handle = __atomic_add_fetch(&last, 1, __ATOMIC_RELAXED),
                                .size = size};
    bool named = take_name(index, mapping);
    if (named && map_name(index, mapping)) {
        gpus[index].mappings = mapping;
        return mapping;
    }
    if (named)
        drop_name(index, mapping);
    free(mapping);
    return NULL;
}

static void drop_mapping(int index, struct mapping *mapping)
{
    struct mapping **link = &gpus[index].mappings;

    while (*link != mapping)
        link = &(*link)->next;
    *link = mapping->next;
    munmap(mapping->address, mapping->size);
    drop_name(index, mapping);
    free(mapping);
}

static bool nvidia_open_ring(int index, const struct channel *channel, const struct ring_place *place,
                             struct ring *ring)
{
    if (!place->memory || place->size > USERD_BYTES_MAX || place->offset > place->size ||
        place->size - place->offset < NV_USERD_BYTES || place->offset % NV_USERD_BYTES)
        return false;
    struct mapping *mapping = find_mapping(index, channel->root, place->memory);
    if (!mapping)
        mapping = make_mapping(index, channel->root, place->memory, place->size);
    if (!mapping || mapping->size < place->size)
        return false;
    mapping->users++;
    const unsigned char *userd = (const unsigned char *)mapping->address + place->offset;
    *ring = (struct ring){.get = (const volatile uint32_t *)(const volatile void *)(userd + NV_USERD_GP_GET),
                          .put = (const volatile uint32_t *)(const volatile void *)(userd + NV_USERD_GP_PUT),
                          .mapping = mapping};
    return true;
}

static void nvidia_close_ring(int index, struct ring *ring)
{
    struct mapping *mapping = ring->mapping;

    *ring = (struct ring){0};
    if (--mapping->users == 0)
        drop_mapping(index, mapping);
}

const struct backend backend_nvidia = {
    .name = "nvidia",
    .open = nvidia_open,
    .gpu_of_device = nvidia_gpu_of_device,
    .kind = nvidia_kind,
    .perform = nvidia_perform,
    .set_channels = nvidia_set_channels,
    .memory_of = nvidia_memory_of,
    .share_ring = nvidia_share_ring,
    .open_ring = nvidia_open_ring,
    .close_ring = nvidia_close_ring,
    .settle_ns = 1000000,
};
