/*
 * The NVIDIA resource manager's ioctl ABI, as far as the guard and the emulated GPU use it.
 *
 * Facts only, no behaviour. Source of every layout and number: NVIDIA open-gpu-kernel-modules r580,
 * nvos.h, nv_escape.h, nvlimits.h, class/cl*.h, ctrl2080fifo.h, ctrla06c.h. Little-endian, LP64.
 */
#ifndef VGPU_RM_ABI_H
#define VGPU_RM_ABI_H

#include <stddef.h>
#include <stdint.h>
#include <sys/ioctl.h>

#define NV_IOCTL_MAGIC 'F'
#define NV_MAJOR 195 /* character device major of /dev/nvidia* */

/* Escape numbers: the low byte of the ioctl request. */
enum {
    NV_ESC_RM_ALLOC_MEMORY = 0x27,
    NV_ESC_RM_FREE = 0x29,
    NV_ESC_RM_CONTROL = 0x2A,
    NV_ESC_RM_ALLOC = 0x2B,
    NV_ESC_RM_DUP_OBJECT = 0x34,
    NV_ESC_RM_VID_HEAP_CONTROL = 0x4A,
    NV_ESC_CARD_INFO = 200,
    NV_ESC_IOCTL_XFER_CMD = 211,
};

/* Status words. */
enum {
    NV_OK = 0x00,
    NV_ERR_INSERT_DUPLICATE_NAME = 0x19,
    NV_ERR_INSUFFICIENT_PERMISSIONS = 0x1B,
    NV_ERR_INVALID_ARGUMENT = 0x1F,
    NV_ERR_INVALID_CLIENT = 0x23,
    NV_ERR_NO_MEMORY = 0x51,
    NV_ERR_NOT_SUPPORTED = 0x56,
    NV_ERR_OBJECT_NOT_FOUND = 0x57,
    NV_ERR_OPERATING_SYSTEM = 0x59,
};

/* Classes. */
enum {
    NV01_ROOT = 0x0000,
    NV01_ROOT_NON_PRIV = 0x0001,
    NV01_MEMORY_LOCAL_USER = 0x0040,
    NV01_ROOT_CLIENT = 0x0041,
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
#define NVOS32_ALLOC_FLAGS_VIRTUAL 0x00080000 /* an address range without memory behind it */

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

/* The older allocation doors, as far as they are looked at. */
#define NVOS02_STATUS_OFFSET 0x28 /* NV_ESC_RM_ALLOC_MEMORY, 56 bytes with its descriptor */
#define NVOS02_CLASS_OFFSET 0x0C
#define NVOS02_SIZE 56
#define NVOS32_STATUS_OFFSET 0x14 /* NV_ESC_RM_VID_HEAP_CONTROL, 184 bytes */
#define NVOS32_FUNCTION_OFFSET 0x08
#define NVOS32_SIZE 184

#define NV_REQUEST(nr, type) _IOC(_IOC_READ | _IOC_WRITE, NV_IOCTL_MAGIC, (nr), sizeof(type))

#endif
