#define _GNU_SOURCE
#include "device.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "rm_abi.h"

#define DEFAULT_DIR "/tmp/vgpu-emulated"
#define DEFAULT_MEMORY (8ull << 30)
/* One lock byte a client, beyond the file's end, where nothing is stored. */
#define LOCK_BASE ((off_t)1 << 40)

static int lock(struct emu_device *device)
{
    int rc = pthread_mutex_lock(&device->lock);
    /* A holder was killed: every operation below leaves the tables usable at each step, so go on. */
    if (rc == EOWNERDEAD)
        rc = pthread_mutex_consistent(&device->lock);
    return rc ? -rc : 0;
}

static void unlock(struct emu_device *device) { pthread_mutex_unlock(&device->lock); }

static int client_lock(int fd, int slot, int command, short type, bool *held)
{
    struct flock range = {.l_type = type, .l_whence = SEEK_SET, .l_start = LOCK_BASE + slot, .l_len = 1};

    if (fcntl(fd, command, &range) < 0)
        return -errno;
    if (held)
        *held = range.l_type != F_UNLCK;
    return 0;
}

struct emu_object *emu_find(struct emu_device *device, uint32_t client, uint32_t handle)
{
    for (uint32_t i = 0; i < device->object_end; i++) {
        struct emu_object *object = &device->objects[i];
        if (object->handle == handle && object->client == client && handle)
            return object;
    }
    return NULL;
}

static struct emu_client *find_client(struct emu_device *device, uint32_t handle)
{
    for (int i = 0; handle && i < EMU_CLIENTS; i++)
        if (device->clients[i].handle == handle)
            return &device->clients[i];
    return NULL;
}

static void free_object(struct emu_device *device, struct emu_object *object)
{
    uint32_t client = object->client, handle = object->handle;

    device->memory_used -= object->bytes;
    object->bytes = 0;
    object->handle = 0;
    /* Somebody may sleep on this channel: let it see that it is gone. */
    __atomic_store_n(&object->disabled, 0, __ATOMIC_SEQ_CST);
    syscall(SYS_futex, &object->disabled, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
    for (uint32_t i = 0; i < device->object_end; i++) {
        struct emu_object *child = &device->objects[i];
        if (child->handle && child->client == client && child->parent == handle)
            free_object(device, child);
    }
}

static void free_client(struct emu_device *device, struct emu_client *client)
{
    for (uint32_t i = 0; i < device->object_end; i++)
        if (device->objects[i].handle && device->objects[i].client == client->handle)
            free_object(device, &device->objects[i]);
    client->handle = 0;
}

static bool is_held(struct emu_driver *driver, const struct emu_client *client)
{
    int slot = (int)(client - driver->device->clients);
    bool held = true;

    return client_lock(driver->probe_fd, slot, F_OFD_GETLK, F_WRLCK, &held) < 0 || held;
}

bool emu_client_lives(struct emu_driver *driver, uint32_t client)
{
    if (lock(driver->device) < 0)
        return true;
    const struct emu_client *found = find_client(driver->device, client);
    bool lives = found && is_held(driver, found);
    unlock(driver->device);
    return lives;
}

static void reap_locked(struct emu_driver *driver)
{
    for (int slot = 0; slot < EMU_CLIENTS; slot++) {
        struct emu_client *client = &driver->device->clients[slot];
        if (client->handle && !is_held(driver, client))
            free_client(driver->device, client);
    }
}

void emu_reap(struct emu_driver *driver)
{
    if (lock(driver->device) < 0)
        return;
    reap_locked(driver);
    unlock(driver->device);
}

uint64_t emu_free_bytes(struct emu_driver *driver)
{
    emu_reap(driver);
    uint64_t used = __atomic_load_n(&driver->device->memory_used, __ATOMIC_RELAXED);
    return used > driver->device->memory_total ? 0 : driver->device->memory_total - used;
}

uint64_t emu_process_bytes(struct emu_driver *driver, pid_t pid)
{
    struct emu_device *device = driver->device;
    uint64_t bytes = 0;

    if (lock(device) < 0)
        return 0;
    for (int slot = 0; slot < EMU_CLIENTS; slot++) {
        const struct emu_client *client = &device->clients[slot];
        for (uint32_t i = 0; client->handle && client->pid == pid && i < device->object_end; i++)
            if (device->objects[i].handle && device->objects[i].client == client->handle)
                bytes += device->objects[i].bytes;
    }
    unlock(device);
    return bytes;
}

static uint32_t alloc_client(struct emu_driver *driver, int fd, pid_t pid, struct nvos64 *call)
{
    reap_locked(driver);
    for (int slot = 0; slot < EMU_CLIENTS; slot++) {
        struct emu_client *client = &driver->device->clients[slot];
        if (client->handle)
            continue;
        if (client_lock(fd, slot, F_OFD_SETLK, F_WRLCK, NULL) < 0)
            continue;
        *client = (struct emu_client){.pid = pid, .handle = 0xC1D00000u + (driver->device->next_client++ & 0xFFFFF)};
        call->object = client->handle;
        return NV_OK;
    }
    return NV_ERR_NO_MEMORY;
}

static uint32_t insert(struct emu_device *device, const struct emu_object *object)
{
    uint32_t i = 0;

    while (i < device->object_end && device->objects[i].handle)
        i++;
    if (i == EMU_OBJECTS)
        return NV_ERR_NO_MEMORY;
    device->objects[i] = *object;
    if (i == device->object_end)
        device->object_end = i + 1;
    return NV_OK;
}

static uint32_t alloc_object(struct emu_driver *driver, struct nvos64 *call)
{
    struct emu_device *device = driver->device;
    struct emu_object object = {
        .client = call->root, .parent = call->parent, .handle = call->object, .class = call->class};
    struct nv_memory_allocation_params *memory = NULL;

    if (!find_client(device, call->root))
        return NV_ERR_INVALID_CLIENT;
    if (!call->object)
        return NV_ERR_INVALID_ARGUMENT;
    if (emu_find(device, call->root, call->object))
        return NV_ERR_INSERT_DUPLICATE_NAME;
    if (call->class == NV01_MEMORY_LOCAL_USER) {
        memory = (void *)(uintptr_t)call->params;
        if (!memory || !memory->size || memory->size > UINT64_MAX - EMU_GRANULE)
            return NV_ERR_INVALID_ARGUMENT;
        if (NVOS32_ATTR_LOCATION(memory->attr) == NVOS32_ATTR_LOCATION_VIDMEM)
            object.bytes = (memory->size + EMU_GRANULE - 1) / EMU_GRANULE * EMU_GRANULE;
        if (object.bytes > device->memory_total - device->memory_used)
            reap_locked(driver);
        if (object.bytes > device->memory_total - device->memory_used)
            return NV_ERR_NO_MEMORY;
    }
    uint32_t status = insert(device, &object);
    if (status == NV_OK) {
        device->memory_used += object.bytes;
        if (memory)
            memory->size = object.bytes ? object.bytes : memory->size;
    }
    return status;
}

static uint32_t do_free(struct emu_device *device, const struct nvos00 *call)
{
    struct emu_client *client = find_client(device, call->root);

    if (!client)
        return NV_ERR_INVALID_CLIENT;
    if (call->object == call->root) {
        free_client(device, client);
        return NV_OK;
    }
    struct emu_object *object = emu_find(device, call->root, call->object);
    if (!object)
        return NV_ERR_OBJECT_NOT_FOUND;
    free_object(device, object);
    return NV_OK;
}

static uint32_t disable_channels(struct emu_device *device, const struct nv2080_fifo_disable_channels *request)
{
    uint32_t status = NV_OK;

    if (request->count > NV2080_FIFO_DISABLE_CHANNELS_MAX)
        return NV_ERR_INVALID_ARGUMENT;
    for (uint32_t i = 0; i < request->count; i++) {
        struct emu_object *channel = emu_find(device, request->clients[i], request->channels[i]);
        if (!channel || !NV_CLASS_IS_CHANNEL(channel->class)) {
            status = NV_ERR_INVALID_ARGUMENT;
            continue;
        }
        /* as the real driver: off twice wants on twice, on once too often does nothing */
        if (request->disable)
            __atomic_add_fetch(&channel->disabled, 1, __ATOMIC_SEQ_CST);
        else if (channel->disabled && __atomic_sub_fetch(&channel->disabled, 1, __ATOMIC_SEQ_CST) == 0)
            syscall(SYS_futex, &channel->disabled, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
    }
    return status;
}

/* The real one waits for so long; here what is not done now is at work. */
static uint32_t check_idle(struct emu_device *device, const struct nv0000_idle_channels *question)
{
    const uint32_t *clients = (const uint32_t *)(uintptr_t)question->clients;
    const uint32_t *channels = (const uint32_t *)(uintptr_t)question->channels;

    for (uint32_t i = 0; i < question->count; i++) {
        const struct emu_object *channel = emu_find(device, clients[i], channels[i]);
        if (!channel)
            return NV_ERR_OBJECT_NOT_FOUND;
        if (__atomic_load_n(&channel->unfinished, __ATOMIC_ACQUIRE))
            return NV_ERR_TIMEOUT;
    }
    return NV_OK;
}

static uint32_t do_control(struct emu_device *device, const struct nvos54 *call)
{
    void *params = (void *)(uintptr_t)call->params;

    if (!params)
        return NV_ERR_INVALID_ARGUMENT;
    if (call->command == NV2080_CTRL_CMD_FIFO_DISABLE_CHANNELS &&
        call->params_size == sizeof(struct nv2080_fifo_disable_channels))
        return disable_channels(device, params);
    if (call->command == NVA06C_CTRL_CMD_SET_TIMESLICE && call->params_size == sizeof(uint64_t)) {
        struct emu_object *group = emu_find(device, call->client, call->object);
        if (!group)
            return NV_ERR_OBJECT_NOT_FOUND;
        group->timeslice_us = (uint32_t)*(uint64_t *)params;
        return NV_OK;
    }
    if (call->command == NVA06C_CTRL_CMD_GPFIFO_SCHEDULE && call->params_size == sizeof(struct nva06c_gpfifo_schedule))
        return emu_find(device, call->client, call->object) ? NV_OK : NV_ERR_OBJECT_NOT_FOUND;
    if (call->command == NV0000_CTRL_CMD_IDLE_CHANNELS && call->params_size == sizeof(struct nv0000_idle_channels))
        return check_idle(device, params);
    if (call->command == NV0000_CTRL_CMD_GPU_GET_PROBED_IDS)
        return find_client(device, call->client) ? NV_OK : NV_ERR_INVALID_CLIENT;
    return NV_ERR_NOT_SUPPORTED;
}

int emu_ioctl(struct emu_driver *driver, int fd, pid_t pid, unsigned long request, void *arg)
{
    int rc = lock(driver->device);

    if (rc < 0)
        return rc;
    if (request == NV_REQUEST(NV_ESC_RM_ALLOC, struct nvos64)) {
        struct nvos64 *call = arg;
        call->status = NV_CLASS_IS_ROOT(call->class) ? alloc_client(driver, fd, pid, call) : alloc_object(driver, call);
    } else if (request == NV_REQUEST(NV_ESC_RM_FREE, struct nvos00)) {
        ((struct nvos00 *)arg)->status = do_free(driver->device, arg);
    } else if (request == NV_REQUEST(NV_ESC_RM_CONTROL, struct nvos54)) {
        ((struct nvos54 *)arg)->status = do_control(driver->device, arg);
    } else {
        rc = -EINVAL;
    }
    unlock(driver->device);
    return rc;
}

void emu_wait_enabled(struct emu_object *channel)
{
    /* Bounded sleeps, so that a lost wake-up costs 100 ms and not a hang. */
    const struct timespec patience = {.tv_nsec = 100000000};

    uint32_t disabled;

    while ((disabled = __atomic_load_n(&channel->disabled, __ATOMIC_SEQ_CST)))
        syscall(SYS_futex, &channel->disabled, FUTEX_WAIT, disabled, &patience, NULL, 0);
}

/* --- device files --- */

/* part: its number from 1, of GPU `index`; 0: it is the whole one. */
static int initialise(struct emu_device *device, uint64_t memory, int index, int part)
{
    pthread_mutexattr_t attributes;
    unsigned char random[16];

    if (getrandom(random, sizeof random, 0) != (ssize_t)sizeof random)
        return -EIO;
    device->version = EMU_VERSION;
    device->memory_total = memory / EMU_GRANULE * EMU_GRANULE;
    /* no two GPUs give the same numbers */
    device->next_client = 1 + ((uint32_t)(index + EMU_MAX_DEVICES * part) << 14);
    int named = snprintf(device->name, sizeof device->name, "Emulated vGPU device %d", index);
    if (part)
        snprintf(device->name + named, sizeof device->name - (size_t)named, " MIG 1g.%llugb",
                 (unsigned long long)(memory >> 30));
    char *out = device->uuid + sprintf(device->uuid, part ? "MIG-" : "GPU-");
    for (int i = 0; i < 16; i++)
        out += sprintf(out, i == 4 || i == 6 || i == 8 || i == 10 ? "-%02x" : "%02x", random[i]);
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
    pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
    int rc = pthread_mutex_init(&device->lock, &attributes);
    pthread_mutexattr_destroy(&attributes);
    __atomic_store_n(&device->magic, EMU_MAGIC, __ATOMIC_RELEASE);
    return -rc;
}

/* Make a device file whole before it gets its name, so that nobody ever opens half of one. */
static int create(const char *path, uint64_t memory, int index, int part)
{
    char draft[600];
    snprintf(draft, sizeof draft, "%s.%d", path, getpid());
    int fd = open(draft, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd < 0)
        return -errno;
    int rc = ftruncate(fd, sizeof(struct emu_device)) < 0 ? -errno : 0;
    /* Tenants run as other users than the one who made the device, like with /dev/nvidia0. */
    if (rc == 0 && fchmod(fd, 0666) < 0)
        rc = -errno;
    if (rc == 0) {
        void *map = mmap(NULL, sizeof(struct emu_device), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        rc = map == MAP_FAILED ? -errno : initialise(map, memory, index, part);
        if (map != MAP_FAILED)
            munmap(map, sizeof(struct emu_device));
    }
    if (rc == 0 && link(draft, path) < 0 && errno != EEXIST)
        rc = -errno;
    unlink(draft);
    close(fd);
    return rc;
}

/* Is it there, or can it be made? */
static bool has_device(const char *path, uint64_t memory, int index, int part, bool make)
{
    if (make && access(path, F_OK) < 0)
        create(path, memory, index, part);
    return access(path, F_OK) == 0;
}

/* The parts of GPU `index`, of which so many are to be made; -1: those that there are. */
static int discover_parts(char paths[][512], int max, const char *dir, int index, uint64_t memory, int wanted)
{
    int found = 0;

    for (int part = 1; part <= EMU_MAX_PARTS && found < max; part++) {
        snprintf(paths[found], 512, "%s/gpu%d" EMU_PART_INFIX "%d", dir, index, part);
        if (wanted >= 0 && part > wanted)
            unlink(paths[found]); /* it would hide the whole device from who finds what there is */
        else
            found += has_device(paths[found], memory / (EMU_MAX_PARTS + 1), index, part, wanted > 0);
    }
    return found;
}

int emu_discover(char paths[][512], int max)
{
    const char *dir = getenv(EMU_ENV_DIR), *size = getenv(EMU_ENV_MEMORY), *wanted = getenv(EMU_ENV_COUNT),
               *divided = getenv(EMU_ENV_MIG);
    uint64_t memory = size ? strtoull(size, NULL, 10) : DEFAULT_MEMORY;
    int count = wanted ? atoi(wanted) : 1, found = 0;

    if (!dir) {
        dir = DEFAULT_DIR;
        mkdir(dir, 0777);
    }
    /* who does not say how many has those that there are */
    for (int i = 0; i < (wanted ? count : EMU_MAX_DEVICES) && found < max; i++) {
        int parts = !wanted ? -1 : i == count - 1 && divided ? atoi(divided) : 0;
        parts = discover_parts(paths + found, max - found, dir, i, memory, parts > EMU_MAX_PARTS ? 0 : parts);
        char whole[512];
        snprintf(whole, sizeof whole, "%s/gpu%d", dir, i);
        bool is_whole = has_device(whole, memory, i, 0, i < count && !(parts && !wanted)) && parts == 0;
        if (is_whole)
            memcpy(paths[found], whole, sizeof whole);
        found += parts + is_whole;
    }
    return found;
}

int emu_open(struct emu_driver *driver, const char *path)
{
    struct stat info;

    *driver = (struct emu_driver){.fd = -1, .probe_fd = -1};
    snprintf(driver->path, sizeof driver->path, "%s", path);
    driver->fd = open(path, O_RDWR | O_CLOEXEC);
    driver->probe_fd = open(path, O_RDWR | O_CLOEXEC);
    if (driver->fd < 0 || driver->probe_fd < 0 || fstat(driver->fd, &info) < 0)
        goto failed;
    errno = EINVAL;
    if (info.st_size != (off_t)sizeof(struct emu_device))
        goto failed;
    driver->device = mmap(NULL, sizeof(struct emu_device), PROT_READ | PROT_WRITE, MAP_SHARED, driver->fd, 0);
    if (driver->device == MAP_FAILED) {
        driver->device = NULL;
        goto failed;
    }
    errno = EPROTO;
    if (driver->device->magic != EMU_MAGIC || driver->device->version != EMU_VERSION)
        goto failed;
    return 0;
failed:;
    int rc = -errno;
    emu_close(driver);
    return rc;
}

void emu_close(struct emu_driver *driver)
{
    if (driver->device)
        munmap(driver->device, sizeof(struct emu_device));
    if (driver->fd >= 0)
        close(driver->fd);
    if (driver->probe_fd >= 0)
        close(driver->probe_fd);
    *driver = (struct emu_driver){.fd = -1, .probe_fd = -1};
}
