/* libnvidia-ml.so.1 of the emulated GPU: what the device file says. Types and numbers: nvml.h of CUDA 13. */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "cuda_api.h"
#include "device.h"
#include "rm_abi.h"

#define API __attribute__((visibility("default")))

typedef struct nvml_device *nvmlDevice_t;
typedef int nvmlReturn_t;
enum {
    NVML_SUCCESS,
    NVML_ERROR_UNINITIALIZED,
    NVML_ERROR_INVALID_ARGUMENT,
    NVML_ERROR_NOT_SUPPORTED,
    NVML_ERROR_NOT_FOUND = 6,
    NVML_ERROR_INSUFFICIENT_SIZE,
    NVML_ERROR_DRIVER_NOT_LOADED = 9
};

struct nvml_memory {
    unsigned long long total, free, used;
};
struct nvml_memory_v2 {
    unsigned version;
    unsigned long long total, reserved, free, used;
};
struct nvml_utilization {
    unsigned gpu, memory;
};
struct nvml_process {
    unsigned pid;
    unsigned long long used;
    unsigned gpu_instance, compute_instance;
};
struct nvml_sample {
    unsigned pid;
    unsigned long long timestamp;
    unsigned sm, memory, encoder, decoder;
};
struct nvml_pci {
    char legacy_id[16];
    unsigned domain, bus, device, device_id, subsystem_id;
    char id[32];
};

struct nvml_attributes {
    unsigned multiprocessors, copy_engines, decoders, encoders, jpeg, ofa, gpu_slices, compute_slices;
    unsigned long long memory_mib;
};

struct nvml_device {
    struct emu_driver driver;
    uint64_t sampled_at, seen[EMU_CLIENTS]; /* for utilisation: busy time at the last look */
    unsigned index;                         /* of a part among its device's */
    unsigned instance;                      /* a part's number, else 0 */
    struct nvml_device *parent;             /* of a part */
};
static struct nvml_device devices[EMU_MAX_DEVICES], parts[EMU_MAX_DEVICES];
static int device_count, part_count, users;

static uint64_t now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (uint64_t)t.tv_sec * 1000000ull + (uint64_t)t.tv_nsec / 1000;
}

static struct nvml_device *add_device(const char *path)
{
    struct nvml_device *added = &devices[device_count];

    if (device_count == EMU_MAX_DEVICES || emu_open(&added->driver, path) != 0)
        return NULL;
    added->sampled_at = now_us();
    for (int c = 0; c < EMU_CLIENTS; c++) /* what was done before is of no time that is looked at */
        added->seen[c] = added->driver.device->clients[c].busy_ns;
    added->index = (unsigned)device_count++;
    return added;
}

static bool is_divided(const struct nvml_device *device)
{
    for (int i = 0; i < part_count; i++)
        if (parts[i].parent == device)
            return true;
    return false;
}

/* Of a part the device too is there, but in a container that has the part alone. */
static void add(const char *path)
{
    const char *infix = strstr(strrchr(path, '/') ? strrchr(path, '/') : path, EMU_PART_INFIX);
    struct nvml_device *parent = device_count ? &devices[device_count - 1] : NULL, *part = &parts[part_count];
    char whole[512];

    snprintf(whole, sizeof whole, "%.*s", infix ? (int)(infix - path) : 0, path);
    if (infix && !(parent && strcmp(parent->driver.path, whole) == 0))
        parent = access(whole, F_OK) == 0 ? add_device(whole) : NULL;
    if (!infix || !parent) {
        add_device(path);
        return;
    }
    if (emu_open(&part->driver, path) != 0)
        return;
    part->parent = parent;
    part->index = part_count && part[-1].parent == parent ? part[-1].index + 1 : 0;
    part->instance = (unsigned)atoi(infix + strlen(EMU_PART_INFIX));
    part_count++;
}

API nvmlReturn_t nvmlInitWithFlags(unsigned flags)
{
    static char paths[EMU_MAX_DEVICES][512];
    (void)flags;
    if (users++ > 0)
        return NVML_SUCCESS;
    int count = emu_discover(paths, EMU_MAX_DEVICES);
    for (int i = 0; i < count; i++)
        add(paths[i]);
    return device_count ? NVML_SUCCESS : NVML_ERROR_DRIVER_NOT_LOADED;
}
API nvmlReturn_t nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
API nvmlReturn_t nvmlInit(void) { return nvmlInitWithFlags(0); }
API nvmlReturn_t nvmlShutdown(void)
{
    if (users == 0)
        return NVML_ERROR_UNINITIALIZED;
    if (--users == 0) {
        while (part_count > 0)
            emu_close(&parts[--part_count].driver);
        while (device_count > 0)
            emu_close(&devices[--device_count].driver);
    }
    return NVML_SUCCESS;
}
API const char *nvmlErrorString(nvmlReturn_t code)
{
    switch (code) {
    case NVML_SUCCESS: return "Success";
    case NVML_ERROR_UNINITIALIZED: return "Uninitialized";
    case NVML_ERROR_INVALID_ARGUMENT: return "Invalid Argument";
    case NVML_ERROR_NOT_SUPPORTED: return "Not Supported";
    case NVML_ERROR_NOT_FOUND: return "Not Found";
    case NVML_ERROR_INSUFFICIENT_SIZE: return "Insufficient Size";
    case NVML_ERROR_DRIVER_NOT_LOADED: return "Driver Not Loaded";
    default: return "Unknown Error";
    }
}

#define CHECK(condition)                        \
    do {                                        \
        if (!(condition))                       \
            return NVML_ERROR_INVALID_ARGUMENT; \
    } while (0)

static nvmlReturn_t text(char *out, unsigned length, const char *value)
{
    CHECK(out && length > 0);
    snprintf(out, length, "%s", value);
    return strlen(value) < length ? NVML_SUCCESS : NVML_ERROR_INSUFFICIENT_SIZE;
}
API nvmlReturn_t nvmlSystemGetDriverVersion(char *out, unsigned length)
{
    return text(out, length, EMU_DRIVER_VERSION);
}
API nvmlReturn_t nvmlSystemGetNVMLVersion(char *out, unsigned length) { return text(out, length, EMU_DRIVER_VERSION); }
API nvmlReturn_t nvmlSystemGetCudaDriverVersion_v2(int *version)
{
    CHECK(version);
    *version = CUDA_API_VERSION;
    return NVML_SUCCESS;
}
API nvmlReturn_t nvmlSystemGetCudaDriverVersion(int *version) { return nvmlSystemGetCudaDriverVersion_v2(version); }
API nvmlReturn_t nvmlDeviceGetCount_v2(unsigned *count)
{
    CHECK(count);
    *count = (unsigned)device_count;
    return NVML_SUCCESS;
}
API nvmlReturn_t nvmlDeviceGetCount(unsigned *count) { return nvmlDeviceGetCount_v2(count); }
API nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned index, nvmlDevice_t *device)
{
    CHECK(device && index < (unsigned)device_count);
    *device = &devices[index];
    return NVML_SUCCESS;
}
API nvmlReturn_t nvmlDeviceGetHandleByIndex(unsigned index, nvmlDevice_t *device)
{
    return nvmlDeviceGetHandleByIndex_v2(index, device);
}
static struct nvml_device *of_uuid(struct nvml_device *all, int count, const char *uuid)
{
    for (int i = 0; i < count; i++)
        if (strcmp(all[i].driver.device->uuid, uuid) == 0)
            return &all[i];
    return NULL;
}
API nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *device)
{
    CHECK(uuid && device);
    struct nvml_device *found = of_uuid(devices, device_count, uuid);
    if (!found)
        found = of_uuid(parts, part_count, uuid);
    if (!found)
        return NVML_ERROR_NOT_FOUND;
    *device = found;
    return NVML_SUCCESS;
}
API nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char *out, unsigned length)
{
    CHECK(device);
    return text(out, length, device->driver.device->uuid);
}
API nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device, char *out, unsigned length)
{
    CHECK(device);
    return text(out, length, device->driver.device->name);
}
API nvmlReturn_t nvmlDeviceGetIndex(nvmlDevice_t device, unsigned *index)
{
    CHECK(device && index);
    *index = device->index;
    return NVML_SUCCESS;
}
API nvmlReturn_t nvmlDeviceGetMinorNumber(nvmlDevice_t device, unsigned *minor)
{
    return nvmlDeviceGetIndex(device, minor);
}
API nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t device, struct nvml_pci *pci)
{
    CHECK(device && pci);
    *pci = (struct nvml_pci){.domain = 0xFFFF, .bus = (device->parent ? device->parent : device)->index};
    snprintf(pci->id, sizeof pci->id, "0000FFFF:%02X:00.0", pci->bus & 0xFF);
    snprintf(pci->legacy_id, sizeof pci->legacy_id, "FFFF:%02X:00.0", pci->bus & 0xFF);
    return NVML_SUCCESS;
}
API nvmlReturn_t nvmlDeviceGetCudaComputeCapability(nvmlDevice_t device, int *major, int *minor)
{
    CHECK(device && major && minor);
    *major = 9;
    *minor = 0;
    return NVML_SUCCESS;
}
API nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, struct nvml_memory *memory)
{
    CHECK(device && memory);
    memory->total = device->driver.device->memory_total;
    memory->free = emu_free_bytes(&device->driver);
    memory->used = memory->total - memory->free;
    return NVML_SUCCESS;
}
API nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, struct nvml_memory_v2 *memory)
{
    struct nvml_memory simple;
    CHECK(memory);
    nvmlReturn_t rc = nvmlDeviceGetMemoryInfo(device, &simple);
    if (rc == NVML_SUCCESS) {
        memory->total = simple.total;
        memory->free = simple.free;
        memory->used = simple.used;
        memory->reserved = 0;
    }
    return rc;
}

/* One row a process: it may have several clients. */
static unsigned processes(struct emu_device *device, struct nvml_process *rows, unsigned max)
{
    unsigned count = 0;
    for (int c = 0; c < EMU_CLIENTS; c++) {
        struct emu_client *client = &device->clients[c];
        unsigned long long bytes = 0;
        unsigned row = 0;
        for (uint32_t i = 0; client->handle && i < device->object_end; i++)
            if (device->objects[i].handle && device->objects[i].client == client->handle)
                bytes += device->objects[i].bytes;
        if (!bytes)
            continue;
        while (row < count && row < max && rows[row].pid != (unsigned)client->pid)
            row++;
        if (row < max && row == count)
            rows[row] = (struct nvml_process){
                .pid = (unsigned)client->pid, .gpu_instance = ~0u, .compute_instance = ~0u};
        if (row < max)
            rows[row].used += bytes;
        count += row == count;
    }
    return count;
}
API nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t device, unsigned *count,
                                                         struct nvml_process *rows)
{
    CHECK(device && count);
    emu_reap(&device->driver);
    unsigned room = rows ? *count : 0;
    *count = processes(device->driver.device, rows, room);
    return *count > room ? NVML_ERROR_INSUFFICIENT_SIZE : NVML_SUCCESS;
}
API nvmlReturn_t nvmlDeviceGetGraphicsRunningProcesses_v3(nvmlDevice_t device, unsigned *count,
                                                          struct nvml_process *rows)
{
    CHECK(device && count);
    (void)rows;
    *count = 0;
    return NVML_SUCCESS;
}
API nvmlReturn_t nvmlDeviceGetProcessUtilization(nvmlDevice_t device, struct nvml_sample *rows, unsigned *count,
                                                 unsigned long long since)
{
    uint64_t now = now_us();
    unsigned room = count ? *count : 0, used = 0;

    (void)since;
    CHECK(device && count);
    if (device->parent || is_divided(device)) /* as NVML has it in MIG mode */
        return NVML_ERROR_NOT_SUPPORTED;
    emu_reap(&device->driver);
    uint64_t elapsed = now > device->sampled_at ? now - device->sampled_at : 1;
    for (int c = 0; c < EMU_CLIENTS; c++) {
        struct emu_client *client = &device->driver.device->clients[c];
        if (!client->handle)
            continue;
        if (rows && used < room) {
            uint64_t busy = client->busy_ns >= device->seen[c] ? client->busy_ns - device->seen[c] : client->busy_ns;
            uint64_t percent = (busy / 10 + elapsed / 2) / elapsed; /* ns over us, in percent */
            rows[used] = (struct nvml_sample){
                .pid = (unsigned)client->pid, .timestamp = now, .sm = percent > 100 ? 100 : (unsigned)percent};
            device->seen[c] = client->busy_ns;
        }
        used++;
    }
    *count = used;
    if (!rows || used > room)
        return NVML_ERROR_INSUFFICIENT_SIZE;
    device->sampled_at = now;
    return used ? NVML_SUCCESS : NVML_ERROR_NOT_FOUND;
}
API nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t device, struct nvml_utilization *rates)
{
    static uint64_t last_busy[EMU_MAX_DEVICES], last_time[EMU_MAX_DEVICES];
    uint64_t busy = 0, now = now_us(), i;
    CHECK(device && rates);
    if (device->parent)
        return NVML_ERROR_NOT_SUPPORTED;
    for (int c = 0; c < EMU_CLIENTS; c++)
        busy += device->driver.device->clients[c].busy_ns;
    i = device->index;
    uint64_t percent = last_time[i] && now > last_time[i] && busy > last_busy[i]
                           ? (busy - last_busy[i]) / 10 / (now - last_time[i])
                           : 0;
    last_busy[i] = busy;
    last_time[i] = now;
    *rates = (struct nvml_utilization){.gpu = percent > 100 ? 100 : (unsigned)percent};
    return NVML_SUCCESS;
}

/* --- parts, as of MIG --- */

API nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t device, unsigned *current, unsigned *pending)
{
    CHECK(device && current && pending && !device->parent);
    *current = *pending = is_divided(device);
    return NVML_SUCCESS;
}
API nvmlReturn_t nvmlDeviceGetMaxMigDeviceCount(nvmlDevice_t device, unsigned *count)
{
    CHECK(device && count);
    *count = EMU_MAX_PARTS;
    return NVML_SUCCESS;
}
API nvmlReturn_t nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice_t device, unsigned index, nvmlDevice_t *part)
{
    CHECK(device && part);
    for (int i = 0; i < part_count; i++)
        if (parts[i].parent == device && parts[i].index == index) {
            *part = &parts[i];
            return NVML_SUCCESS;
        }
    return NVML_ERROR_NOT_FOUND;
}
API nvmlReturn_t nvmlDeviceIsMigDeviceHandle(nvmlDevice_t device, unsigned *is_part)
{
    CHECK(device && is_part);
    *is_part = device->parent != NULL;
    return NVML_SUCCESS;
}
API nvmlReturn_t nvmlDeviceGetDeviceHandleFromMigDeviceHandle(nvmlDevice_t part, nvmlDevice_t *device)
{
    CHECK(part && part->parent && device);
    *device = part->parent;
    return NVML_SUCCESS;
}
API nvmlReturn_t nvmlDeviceGetGpuInstanceId(nvmlDevice_t part, unsigned *id)
{
    CHECK(part && part->parent && id);
    *id = part->instance;
    return NVML_SUCCESS;
}
API nvmlReturn_t nvmlDeviceGetComputeInstanceId(nvmlDevice_t part, unsigned *id)
{
    CHECK(part && part->parent && id);
    *id = 0;
    return NVML_SUCCESS;
}
API nvmlReturn_t nvmlDeviceGetAttributes_v2(nvmlDevice_t part, struct nvml_attributes *attributes)
{
    CHECK(part && part->parent && attributes);
    *attributes = (struct nvml_attributes){
        .gpu_slices = 1, .compute_slices = 1, .memory_mib = part->driver.device->memory_total >> 20};
    return NVML_SUCCESS;
}

/* What monitors ask for before anything else, and this device does not have. */
#define LACKS(symbol)                                 \
    API nvmlReturn_t symbol(nvmlDevice_t device, ...) \
    {                                                 \
        (void)device;                                 \
        return NVML_ERROR_NOT_SUPPORTED;              \
    }
LACKS(nvmlDeviceGetNvLinkVersion)
LACKS(nvmlDeviceGetMaxPcieLinkGeneration)
