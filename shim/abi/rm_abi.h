/*
 * The NVIDIA resource manager's ioctl ABI, as far as the guard and the emulated GPU use it.
 *
 * Facts only, no behaviour. Source of every layout and number: NVIDIA open-gpu-kernel-modules r580,
 * nvos.h, nv_escape.h, nvlimits.h, rs_access.h, class/cl*.h, ctrl0000gpu.h, ctrl2080fifo.h, ctrla06c.h. Little-endian,
 * LP64.
 */
#ifndef VGPU_RM_ABI_H
#define VGPU_RM_ABI_H

#include <stddef.h>
#include <stdint.h>
#include <sys/ioctl.h>

#define NV_IOCTL_MAGIC 'F'
#define NV_MAJOR 195         /* character device major of /dev/nvidia* */
#define NV_MINOR_CONTROL 255 /* /dev/nvidiactl: clients live on files of this one; the GPUs' own start at 0 */

/* Escape numbers: the low byte of the ioctl request. */
enum {
    NV_ESC_RM_ALLOC_MEMORY = 0x27, /* on a GPU's own node; gives a user host memory only */
    NV_ESC_RM_ALLOC_OBJECT = 0x28,
    NV_ESC_RM_FREE = 0x29,
    NV_ESC_RM_CONTROL = 0x2A,
    NV_ESC_RM_ALLOC = 0x2B,
    NV_ESC_RM_DUP_OBJECT = 0x34,
    NV_ESC_RM_SHARE = 0x35,
    NV_ESC_RM_IDLE_CHANNELS = 0x41,
    NV_ESC_RM_VID_HEAP_CONTROL = 0x4A,
    NV_ESC_RM_MAP_MEMORY = 0x4E,
    NV_ESC_CARD_INFO = 200,
    NV_ESC_IOCTL_XFER_CMD = 211,
    NV_ESC_EXPORT_TO_DMABUF_FD = 217,
};

/* Status words. */
enum {
    NV_OK = 0x00,
    NV_ERR_INSERT_DUPLICATE_NAME = 0x19,
    NV_ERR_INSUFFICIENT_RESOURCES = 0x1A,
    NV_ERR_INSUFFICIENT_PERMISSIONS = 0x1B,
    NV_ERR_INVALID_ADDRESS = 0x1E,
    NV_ERR_INVALID_ARGUMENT = 0x1F,
    NV_ERR_INVALID_CLIENT = 0x23,
    NV_ERR_INVALID_OBJECT_PARENT = 0x36,
    NV_ERR_NO_MEMORY = 0x51,
    NV_ERR_NOT_SUPPORTED = 0x56,
    NV_ERR_OBJECT_NOT_FOUND = 0x57,
    NV_ERR_OPERATING_SYSTEM = 0x59,
    NV_ERR_TIMEOUT = 0x65,
};

/* Classes. */
enum {
    NV01_ROOT = 0x0000,
    NV01_ROOT_NON_PRIV = 0x0001,
    NV01_EVENT = 0x0005,
    NV01_MEMORY_LOCAL_USER = 0x0040,
    NV01_ROOT_CLIENT = 0x0041,
    NV01_EVENT_OS_EVENT = 0x0079,
    NV01_DEVICE_0 = 0x0080,
    NV20_SUBDEVICE_0 = 0x2080,
    KEPLER_CHANNEL_GROUP_A = 0xA06C,
    HOPPER_CHANNEL_GPFIFO_A = 0xC86F,
};

/* Every GPFIFO channel class since Kepler ends in 0x6F (cla06f.h ... clc86f.h, clc96f.h). */
#define NV_CLASS_IS_CHANNEL(c) (((c) & 0xFF) == 0x6F && (c) > 0xA000)
#define NV_CLASS_IS_ROOT(c) ((c) == NV01_ROOT || (c) == NV01_ROOT_NON_PRIV || (c) == NV01_ROOT_CLIENT)

struct nvos00 { /* NV_ESC_RM_FREE */
    uint32_t root, parent, object, status;
};
_Static_assert(sizeof(struct nvos00) == 16, "NVOS00 layout");

struct nvos05 { /* NV_ESC_RM_ALLOC_OBJECT: only for what needs no parameters, a client for one */
    uint32_t root, parent, object, class, status;
};
_Static_assert(sizeof(struct nvos05) == 20, "NVOS05 layout");

struct nvos21 { /* NV_ESC_RM_ALLOC, the older and shorter form; told apart by the ioctl's size */
    uint32_t root, parent, object, class;
    uint64_t params;
    uint32_t params_size, status;
};
_Static_assert(sizeof(struct nvos21) == 32, "NVOS21 layout");

struct nvos64 { /* NV_ESC_RM_ALLOC */
    uint32_t root, parent, object, class;
    uint64_t params, rights;
    uint32_t params_size, flags, status, reserved;
};
_Static_assert(sizeof(struct nvos64) == 48, "NVOS64 layout");

struct nvos54 { /* NV_ESC_RM_CONTROL */
    uint32_t client, object, command, flags;
    uint64_t params;
    uint32_t params_size, status;
};
_Static_assert(sizeof(struct nvos54) == 32, "NVOS54 layout");

struct nv_memory_allocation_params { /* class 0x40 */
    uint32_t owner, type, flags, width, height;
    int32_t pitch;
    uint32_t attr, attr2, format, compr_covg, zcull_covg, pad;
    uint64_t range_lo, range_hi, size, alignment, offset, limit, address;
    uint32_t ctag_offset, vaspace, internal_flags, tag;
    int32_t numa_node;
    uint32_t pad2;
};
_Static_assert(offsetof(struct nv_memory_allocation_params, attr) == 24, "attr");
_Static_assert(offsetof(struct nv_memory_allocation_params, size) == 64, "size");
_Static_assert(sizeof(struct nv_memory_allocation_params) == 128, "NV_MEMORY_ALLOCATION_PARAMS layout");

/* attr bits 26:25, NVOS32_ATTR_LOCATION; 0 is video memory. */
#define NVOS32_ATTR_LOCATION(attr) (((attr) >> 25) & 3)
#define NVOS32_ATTR_LOCATION_VIDMEM 0
#define NVOS32_ATTR_LOCATION_PCI 1            /* host memory */
#define NVOS32_ALLOC_FLAGS_VIRTUAL 0x00080000 /* an address range without memory behind it */

/* Is an allocation so described, as asked or as made, one of the GPU's own memory? */
static inline int nv_takes_video_memory(uint32_t attr, uint32_t flags)
{
    /* "anywhere" may be video memory too */
    return NVOS32_ATTR_LOCATION(attr) != NVOS32_ATTR_LOCATION_PCI && !(flags & NVOS32_ALLOC_FLAGS_VIRTUAL);
}

struct nv0080_alloc_params {
    uint32_t device_id, client_share, target_client, target_device;
    int32_t flags;
    uint32_t pad;
    uint64_t va_space_size, va_start, va_limit;
    int32_t va_mode;
    uint32_t pad2;
};
_Static_assert(sizeof(struct nv0080_alloc_params) == 56, "NV0080_ALLOC_PARAMETERS layout");

struct nv2080_alloc_params {
    uint32_t subdevice_id;
};

/* Controls. */
#define NV2080_CTRL_CMD_FIFO_DISABLE_CHANNELS 0x2080110Bu
#define NV2080_FIFO_DISABLE_CHANNELS_MAX 64
struct nv2080_fifo_disable_channels {
    uint8_t disable;
    uint8_t pad[3];
    uint32_t count;
    uint8_t only_disable_scheduling, rewind_gp_put;
    uint8_t pad2[6];
    uint64_t preempt_event;
    uint32_t clients[NV2080_FIFO_DISABLE_CHANNELS_MAX];
    uint32_t channels[NV2080_FIFO_DISABLE_CHANNELS_MAX];
};
_Static_assert(sizeof(struct nv2080_fifo_disable_channels) == 536, "FIFO_DISABLE_CHANNELS layout");

/* Which processes made clients with objects of this class? */
#define NV2080_CTRL_CMD_GPU_GET_PIDS 0x2080018Du
#define NV2080_PIDS_MAX 950
struct nv2080_get_pids {
    uint32_t id_type, id, count, pids[NV2080_PIDS_MAX];
};
_Static_assert(sizeof(struct nv2080_get_pids) == 3812, "NV2080_CTRL_GPU_GET_PIDS_PARAMS layout");

/* How much video memory do the clients have that these processes made? */
#define NV2080_CTRL_CMD_GPU_GET_PID_INFO 0x2080018Eu
#define NV2080_PID_INFO_MAX 200
#define NV2080_PID_INFO_VIDEO_MEMORY_USAGE 0u
struct nv2080_pid_info {
    uint32_t pid, index, result, pad;
    uint64_t memory_private, memory_shared_owned, memory_shared_duped, protected[3];
    uint32_t compute_instance, gpu_instance;
};
_Static_assert(sizeof(struct nv2080_pid_info) == 72, "NV2080_CTRL_GPU_PID_INFO layout");
struct nv2080_get_pid_info {
    uint32_t count, pad;
    struct nv2080_pid_info list[NV2080_PID_INFO_MAX];
};

/* Which process was on each engine, of the last ten seconds. */
#define NV2080_CTRL_CMD_PERF_GET_GPUMON_PERFMON_UTIL_SAMPLES_V2 0x20802096u
#define NV2080_GPUMON_PID_INVALID UINT32_MAX
#define NV2080_UTIL_SAMPLES 72
#define NV2080_UTIL_ENGINES 6
struct nv2080_engine_util {
    uint32_t util, vgpu_scale, pid, pid_in_guest;
    char name_in_guest[100];
    uint32_t pad;
    uint64_t kernel_pointer; /* where the driver has not translated the process' number for the caller */
};
_Static_assert(sizeof(struct nv2080_engine_util) == 128, "NV2080_CTRL_PERF_GPUMON_ENGINE_UTIL_SAMPLE layout");
struct nv2080_util_samples {
    uint8_t type, pad[3];
    uint32_t buffer_size, count, tracker;
    struct {
        uint64_t timestamp;
        struct nv2080_engine_util engines[NV2080_UTIL_ENGINES];
    } samples[NV2080_UTIL_SAMPLES];
};
_Static_assert(sizeof(struct nv2080_util_samples) == 55888, "PERF_GET_GPUMON_PERFMON_UTIL_SAMPLES_V2 layout");

#define NVA06C_CTRL_CMD_GPFIFO_SCHEDULE 0xA06C0101u /* on a channel group */
#define NVA06F_CTRL_CMD_GPFIFO_SCHEDULE 0xA06F0103u /* on a channel */
struct nva06c_gpfifo_schedule {
    uint8_t enable, skip_submit, skip_enable;
};
#define NVA06C_CTRL_CMD_SET_TIMESLICE 0xA06C0103u

#define NV0000_CTRL_CMD_GPU_GET_PROBED_IDS 0x214u
#define NV0000_PROBED_IDS_WORDS 96 /* three lists of 32 */
#define NV0000_CTRL_CMD_GPU_GET_ID_INFO_V2 0x205u
struct nv0000_gpu_id_info {
    uint32_t gpu_id, gpu_flags, device_instance, subdevice_instance;
    uint32_t sli_status, board_id, gpu_instance;
    int32_t numa_id;
};
_Static_assert(sizeof(struct nv0000_gpu_id_info) == 32, "GPU_GET_ID_INFO_V2 layout");

/* Memory through a file: the commands, each with a descriptor in it. */
#define NV0000_CTRL_CMD_OS_UNIX_EXPORT_OBJECT_TO_FD 0x3D05u
#define NV0000_CTRL_CMD_OS_UNIX_IMPORT_OBJECT_FROM_FD 0x3D06u
#define NV0000_CTRL_CMD_OS_UNIX_GET_EXPORT_OBJECT_INFO 0x3D08u
#define NV0000_CTRL_CMD_OS_UNIX_CREATE_EXPORT_OBJECT_FD 0x3D0Au
#define NV0000_CTRL_CMD_OS_UNIX_EXPORT_OBJECTS_TO_FD 0x3D0Bu
#define NV0000_CTRL_CMD_OS_UNIX_IMPORT_OBJECTS_FROM_FD 0x3D0Cu
struct nv0000_export_object {
    uint32_t type, device, parent, object;
    int32_t fd;
    uint32_t flags;
};
_Static_assert(sizeof(struct nv0000_export_object) == 24, "OS_UNIX_EXPORT_OBJECT_TO_FD layout");
struct nv0000_import_object {
    int32_t fd;
    uint32_t type, device, parent, object;
};
struct nv0000_create_export_fd {
    uint32_t device;
    uint16_t max_objects;
    uint8_t metadata[64];
    int32_t fd;
};
#define NV0000_EXPORT_OBJECTS_MAX 512
struct nv0000_export_objects {
    int32_t fd;
    uint32_t device;
    uint16_t max_objects;
    uint8_t metadata[64];
    uint32_t objects[NV0000_EXPORT_OBJECTS_MAX];
    uint16_t count, index;
};
_Static_assert(sizeof(struct nv0000_export_objects) == 2128, "OS_UNIX_EXPORT_OBJECTS_TO_FD layout");
#define NV0000_IMPORT_OBJECTS_MAX 128
struct nv0000_import_objects {
    int32_t fd;
    uint32_t parent, objects[NV0000_IMPORT_OBJECTS_MAX];
    uint8_t types[NV0000_IMPORT_OBJECTS_MAX];
    uint16_t count, index;
};
_Static_assert(sizeof(struct nv0000_import_objects) == 652, "OS_UNIX_IMPORT_OBJECTS_FROM_FD layout");

/*
 * Is a channel at work? With a time to wait, in microseconds, the driver answers OK when nothing of it runs or waits,
 * and TIMEOUT when something does; with 0 it would wait for good, and nobody could use the GPU's driver meanwhile.
 */
#define NV0000_CTRL_CMD_IDLE_CHANNELS 0x283u
#define NVOS30_FLAGS_BEHAVIOR_FORCE_BUSY_CHECK 0x3u
#define NVOS30_FLAGS_CHANNEL_LIST 0u
#define NVOS30_FLAGS_IDLE_ALL_ENGINES 0x00FFFF00u
struct nv0000_idle_channels {
    uint32_t device, channel, count, pad;
    uint64_t clients, devices, channels;
    uint32_t flags, timeout_us;
};
_Static_assert(sizeof(struct nv0000_idle_channels) == 48, "NV0000_CTRL_GPU_IDLE_CHANNELS_PARAMS layout");

/* Where a channel keeps its ring's pointers, USERD: in its parameters (NV_CHANNEL_ALLOC_PARAMS), and in that memory. */
#define NV_CHANNEL_PARAMS_USERD_MEMORY 32 /* u32 */
#define NV_CHANNEL_PARAMS_USERD_OFFSET 64 /* u64 */
#define NV_USERD_GP_GET 0x88
#define NV_USERD_GP_PUT 0x8C
#define NV_USERD_BYTES 0x200

/* NV_ESC_CARD_INFO: an array of these, at least as long as there are GPUs. */
#define NV_MAX_CARDS 32
struct nv_card_info {
    uint8_t valid, pad[3];
    uint32_t domain;
    uint8_t bus, slot, function, pad2;
    uint16_t vendor, device;
    uint32_t gpu_id;
    uint16_t irq, pad3;
    uint64_t reg_address, reg_size, fb_address, fb_size;
    uint32_t minor;
    uint8_t device_name[10], pad4[2];
};
_Static_assert(sizeof(struct nv_card_info) == 72, "nv_ioctl_card_info_t layout");

struct nv_xfer { /* NV_ESC_IOCTL_XFER_CMD: any of the above, wrapped */
    uint32_t command, size;
    uint64_t params;
};
_Static_assert(sizeof(struct nv_xfer) == 16, "nv_ioctl_xfer_t layout");

struct nvos55 { /* NV_ESC_RM_DUP_OBJECT */
    uint32_t client, parent, object, client_source, object_source, flags, status;
};
_Static_assert(sizeof(struct nvos55) == 28, "NVOS55 layout");

struct nvos57 { /* NV_ESC_RM_SHARE, with its RS_SHARE_POLICY */
    uint32_t client, object;
    uint32_t target, access;
    uint16_t type;
    uint8_t action, pad;
    uint32_t status;
};
_Static_assert(sizeof(struct nvos57) == 24, "NVOS57 layout");
#define RS_ACCESS_DUP_OBJECT_MASK 1u
#define RS_SHARE_TYPE_CLIENT 3

struct nvos33_with_fd { /* NV_ESC_RM_MAP_MEMORY: the mapping is then mmap()ed from the descriptor */
    uint32_t client, device, memory, pad;
    uint64_t offset, length, address;
    uint32_t status, flags;
    int32_t fd, pad2;
};
_Static_assert(sizeof(struct nvos33_with_fd) == 56, "nv_ioctl_nvos33_parameters_with_fd layout");
#define NVOS33_FLAGS_ACCESS_READ_ONLY 1u

/* NV_ESC_RM_VID_HEAP_CONTROL, the older allocation door, which OpenGL takes. */
enum {
    NVOS32_FUNCTION_ALLOC_SIZE = 2,
    NVOS32_FUNCTION_FREE = 3,
    NVOS32_FUNCTION_INFO = 5,
    NVOS32_FUNCTION_ALLOC_SIZE_RANGE = 14,
    NVOS32_FUNCTION_GET_MEM_ALIGNMENT = 18,
};
struct nvos32 {
    uint32_t root, parent, function, vaspace;
    int16_t ivc_heap, pad;
    uint32_t status;
    uint64_t total, free;
    uint32_t owner, memory, type, flags, attr; /* of both allocating functions; FREE: `memory` */
    uint32_t rest[31];
};
_Static_assert(offsetof(struct nvos32, status) == 0x14, "NVOS32 status");
_Static_assert(offsetof(struct nvos32, attr) == 0x38, "NVOS32 attr");
_Static_assert(sizeof(struct nvos32) == 184, "NVOS32 layout");
#define NVOS32_ALLOC_SIZE_SIZE_OFFSET 0x58       /* u64, function ALLOC_SIZE */
#define NVOS32_ALLOC_SIZE_RANGE_SIZE_OFFSET 0x50 /* u64, function ALLOC_SIZE_RANGE */
#define NVOS32_ALLOC_FLAGS_MEMORY_HANDLE_PROVIDED 0x00004000

#define NV_REQUEST(nr, type) _IOC(_IOC_READ | _IOC_WRITE, NV_IOCTL_MAGIC, (nr), sizeof(type))

#endif
