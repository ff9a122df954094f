/*
 * What the shim says instead of NVML: there is one GPU, the slice, and on it run the tenant's own processes. The driver
 * is asked first each time, for its errors are the right ones. Types and numbers are those of nvml.h.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#include "hook.h"

typedef int nvmlReturn_t;
typedef void *nvmlDevice_t;
enum {
    NVML_SUCCESS = 0,
    NVML_ERROR_UNINITIALIZED = 1,
    NVML_ERROR_INVALID_ARGUMENT = 2,
    NVML_ERROR_NOT_FOUND = 6,
    NVML_ERROR_INSUFFICIENT_SIZE = 7
};
#define SAMPLE_STALE_NS 5000000000ull /* older than this, nobody samples any more */

#define NVML_SYMBOL(symbol, type) ((type)real_symbol("libnvidia-ml.so.1", #symbol))

/* --- which GPU --- */

static bool is_slice_gpu(nvmlDevice_t device, struct slice *slice)
{
    char uuid[96] = "";
    nvmlReturn_t (*get_uuid)(nvmlDevice_t, char *, unsigned) = NVML_SYMBOL(
        nvmlDeviceGetUUID, nvmlReturn_t (*)(nvmlDevice_t, char *, unsigned));

    return slice_read(slice) && get_uuid && get_uuid(device, uuid, sizeof uuid) == NVML_SUCCESS &&
           strcmp(uuid, slice->gpu_uuid) == 0;
}

static nvmlReturn_t one_of(nvmlReturn_t rc, unsigned *count)
{
    struct slice slice;

    if (rc == NVML_SUCCESS && *count > 1 && slice_read(&slice))
        *count = 1;
    return rc;
}
API nvmlReturn_t nvmlDeviceGetCount(unsigned *count)
{
    __typeof__(&nvmlDeviceGetCount) next = REAL(nvmlDeviceGetCount);
    return next ? one_of(next(count), count) : NVML_ERROR_UNINITIALIZED;
}
API nvmlReturn_t nvmlDeviceGetCount_v2(unsigned *count)
{
    __typeof__(&nvmlDeviceGetCount_v2) next = REAL(nvmlDeviceGetCount_v2);
    return next ? one_of(next(count), count) : NVML_ERROR_UNINITIALIZED;
}

typedef nvmlReturn_t (*by_index)(unsigned, nvmlDevice_t *);

static nvmlReturn_t handle_by_index(by_index next, unsigned index, nvmlDevice_t *device)
{
    nvmlReturn_t (*by_uuid)(const char *, nvmlDevice_t *) = NVML_SYMBOL(nvmlDeviceGetHandleByUUID,
                                                                        nvmlReturn_t (*)(const char *, nvmlDevice_t *));
    struct slice slice;

    if (!next)
        return NVML_ERROR_UNINITIALIZED;
    if (!slice_read(&slice) || !by_uuid)
        return next(index, device);
    return index ? NVML_ERROR_INVALID_ARGUMENT : by_uuid(slice.gpu_uuid, device);
}
API nvmlReturn_t nvmlDeviceGetHandleByIndex(unsigned index, nvmlDevice_t *device)
{
    return handle_by_index(REAL(nvmlDeviceGetHandleByIndex), index, device);
}
API nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned index, nvmlDevice_t *device)
{
    return handle_by_index(REAL(nvmlDeviceGetHandleByIndex_v2), index, device);
}

typedef nvmlReturn_t (*by_name)(const char *, nvmlDevice_t *);

static nvmlReturn_t handle_by_name(by_name next, const char *name, nvmlDevice_t *device)
{
    nvmlReturn_t rc = next ? next(name, device) : NVML_ERROR_UNINITIALIZED;
    struct slice slice;

    return rc == NVML_SUCCESS && slice_read(&slice) && !is_slice_gpu(*device, &slice) ? NVML_ERROR_NOT_FOUND : rc;
}
API nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *device)
{
    return handle_by_name(REAL(nvmlDeviceGetHandleByUUID), uuid, device);
}
API nvmlReturn_t nvmlDeviceGetHandleBySerial(const char *serial, nvmlDevice_t *device)
{
    return handle_by_name(REAL(nvmlDeviceGetHandleBySerial), serial, device);
}
API nvmlReturn_t nvmlDeviceGetHandleByPciBusId(const char *id, nvmlDevice_t *device)
{
    return handle_by_name(REAL(nvmlDeviceGetHandleByPciBusId), id, device);
}
API nvmlReturn_t nvmlDeviceGetHandleByPciBusId_v2(const char *id, nvmlDevice_t *device)
{
    return handle_by_name(REAL(nvmlDeviceGetHandleByPciBusId_v2), id, device);
}

API nvmlReturn_t nvmlDeviceGetIndex(nvmlDevice_t device, unsigned *index)
{
    __typeof__(&nvmlDeviceGetIndex) next = REAL(nvmlDeviceGetIndex);
    nvmlReturn_t rc = next ? next(device, index) : NVML_ERROR_UNINITIALIZED;
    struct slice slice;

    if (rc == NVML_SUCCESS && is_slice_gpu(device, &slice))
        *index = 0;
    return rc;
}

/* --- memory --- */

struct nvml_memory {
    unsigned long long total, free, used;
};
struct nvml_memory_v2 {
    unsigned version;
    unsigned long long total, reserved, free, used;
};

API nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, struct nvml_memory *memory)
{
    __typeof__(&nvmlDeviceGetMemoryInfo) next = REAL(nvmlDeviceGetMemoryInfo);
    nvmlReturn_t rc = next ? next(device, memory) : NVML_ERROR_UNINITIALIZED;
    struct slice slice;

    if (rc == NVML_SUCCESS && is_slice_gpu(device, &slice) && slice.quota < memory->total)
        *memory = (struct nvml_memory){.total = slice.quota, .free = slice.free, .used = slice.quota - slice.free};
    return rc;
}

API nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, struct nvml_memory_v2 *memory)
{
    __typeof__(&nvmlDeviceGetMemoryInfo_v2) next = REAL(nvmlDeviceGetMemoryInfo_v2);
    nvmlReturn_t rc = next ? next(device, memory) : NVML_ERROR_UNINITIALIZED;
    struct slice slice;

    if (rc == NVML_SUCCESS && is_slice_gpu(device, &slice) && slice.quota < memory->total)
        *memory = (struct nvml_memory_v2){
            .version = memory->version, .total = slice.quota, .free = slice.free, .used = slice.quota - slice.free};
    return rc;
}

/* --- processes --- */

struct process_v1 {
    unsigned pid;
    unsigned long long memory;
};
struct process_v2 { /* and v3 */
    unsigned pid;
    unsigned long long memory;
    unsigned gpu_instance, compute_instance; /* all ones: no MIG */
};

typedef nvmlReturn_t (*list_function)(nvmlDevice_t, unsigned *, void *);

/* The driver's word without its rows: NVML says so when they would not fit in none. */
static nvmlReturn_t asked(list_function next, nvmlDevice_t device)
{
    unsigned none = 0;
    nvmlReturn_t rc = next ? next(device, &none, NULL) : NVML_ERROR_UNINITIALIZED;

    return rc == NVML_ERROR_INSUFFICIENT_SIZE ? NVML_SUCCESS : rc;
}

static nvmlReturn_t list_processes(list_function next, nvmlDevice_t device, unsigned *count, void *rows,
                                   bool short_rows)
{
    struct vgpu_process_row found[VGPU_PAGE_PROCESSES];
    struct slice slice;

    if (!slice_read(&slice))
        return next ? next(device, count, rows) : NVML_ERROR_UNINITIALIZED;
    nvmlReturn_t rc = asked(next, device);
    if (rc != NVML_SUCCESS)
        return rc;
    if (!count)
        return NVML_ERROR_INVALID_ARGUMENT;
    unsigned room = rows ? *count : 0, all = is_slice_gpu(device, &slice) ? slice_processes(found, room) : 0;
    *count = all;
    for (unsigned i = 0; i < all && i < room; i++) {
        if (short_rows)
            ((struct process_v1 *)rows)[i] = (struct process_v1){found[i].pid_inside, found[i].memory};
        else
            ((struct process_v2 *)rows)[i] = (struct process_v2){found[i].pid_inside, found[i].memory, ~0u, ~0u};
    }
    return all > room ? NVML_ERROR_INSUFFICIENT_SIZE : NVML_SUCCESS;
}

/* Graphics and MPS have lists of their own: everything in a slice is shown among the compute processes. */
static nvmlReturn_t list_none(list_function next, nvmlDevice_t device, unsigned *count, void *rows)
{
    struct slice slice;

    if (!slice_read(&slice))
        return next ? next(device, count, rows) : NVML_ERROR_UNINITIALIZED;
    nvmlReturn_t rc = asked(next, device);
    if (rc == NVML_SUCCESS && count)
        *count = 0;
    return rc;
}

#define COMPUTE_LIST(symbol, short_rows)                                                     \
    API nvmlReturn_t symbol(nvmlDevice_t device, unsigned *count, void *rows)                \
    {                                                                                        \
        return list_processes((list_function)REAL(symbol), device, count, rows, short_rows); \
    }
#define EMPTY_LIST(symbol)                                                    \
    API nvmlReturn_t symbol(nvmlDevice_t device, unsigned *count, void *rows) \
    {                                                                         \
        return list_none((list_function)REAL(symbol), device, count, rows);   \
    }
COMPUTE_LIST(nvmlDeviceGetComputeRunningProcesses, true)
COMPUTE_LIST(nvmlDeviceGetComputeRunningProcesses_v2, false)
COMPUTE_LIST(nvmlDeviceGetComputeRunningProcesses_v3, false)
EMPTY_LIST(nvmlDeviceGetGraphicsRunningProcesses)
EMPTY_LIST(nvmlDeviceGetGraphicsRunningProcesses_v2)
EMPTY_LIST(nvmlDeviceGetGraphicsRunningProcesses_v3)
EMPTY_LIST(nvmlDeviceGetMPSComputeRunningProcesses)
EMPTY_LIST(nvmlDeviceGetMPSComputeRunningProcesses_v2)
EMPTY_LIST(nvmlDeviceGetMPSComputeRunningProcesses_v3)

/* --- compute --- */

struct utilization {
    unsigned gpu, memory;
};
struct process_sample {
    unsigned pid;
    unsigned long long timestamp; /* microseconds since 1970 */
    unsigned sm, memory, encoder, decoder;
};

static uint64_t realtime_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
}

/* Percent of the whole GPU to percent of the slice: all that the slice has is 100. */
static unsigned of_slice(const struct slice *slice, unsigned percent)
{
    unsigned scaled = slice->core_millipercent ? (unsigned)(100000ull * percent / slice->core_millipercent) : percent;
    return scaled < 100 ? scaled : 100;
}

/* The busy processes of the slice as the daemon sampled them; returns how many. */
static unsigned busy_processes(const struct slice *slice, struct vgpu_process_row *found)
{
    if (slice->sampled_at_ns + SAMPLE_STALE_NS < realtime_ns())
        return 0;
    unsigned all = slice_processes(found, VGPU_PAGE_PROCESSES), busy = 0;
    for (unsigned i = 0; i < all && i < VGPU_PAGE_PROCESSES; i++)
        if (found[i].busy_percent)
            found[busy++] = found[i];
    return busy;
}

API nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t device, struct utilization *rates)
{
    struct vgpu_process_row found[VGPU_PAGE_PROCESSES];
    __typeof__(&nvmlDeviceGetUtilizationRates) next = REAL(nvmlDeviceGetUtilizationRates);
    nvmlReturn_t rc = next ? next(device, rates) : NVML_ERROR_UNINITIALIZED;
    struct slice slice;
    unsigned percent = 0;

    if (rc != NVML_SUCCESS || !slice_read(&slice))
        return rc;
    unsigned busy = is_slice_gpu(device, &slice) ? busy_processes(&slice, found) : 0;
    for (unsigned i = 0; i < busy; i++)
        percent += found[i].busy_percent;
    *rates = (struct utilization){.gpu = of_slice(&slice, percent)}; /* nobody measures memory's by tenant */
    return rc;
}

API nvmlReturn_t nvmlDeviceGetProcessUtilization(nvmlDevice_t device, struct process_sample *rows, unsigned *count,
                                                 unsigned long long since_us)
{
    struct vgpu_process_row found[VGPU_PAGE_PROCESSES];
    __typeof__(&nvmlDeviceGetProcessUtilization) next = REAL(nvmlDeviceGetProcessUtilization);
    struct slice slice;

    if (!next)
        return NVML_ERROR_UNINITIALIZED;
    if (!slice_read(&slice) || !count)
        return next(device, rows, count, since_us);
    uint64_t at_us = slice.sampled_at_ns / 1000;
    unsigned busy = is_slice_gpu(device, &slice) && at_us > since_us ? busy_processes(&slice, found) : 0;
    unsigned room = rows ? *count : 0;
    *count = busy;
    if (!busy)
        return NVML_ERROR_NOT_FOUND; /* as the driver says to no samples */
    for (unsigned i = 0; i < busy && i < room; i++)
        rows[i] = (struct process_sample){
            .pid = found[i].pid_inside, .timestamp = at_us, .sm = of_slice(&slice, found[i].busy_percent)};
    return busy > room ? NVML_ERROR_INSUFFICIENT_SIZE : NVML_SUCCESS;
}
