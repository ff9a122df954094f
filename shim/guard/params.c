#include "params.h"

#include <stddef.h>
#include <string.h>

#include "util.h"

#define COUNT_OF(table) (sizeof(table) / sizeof *(table))

/* {command, count at, bytes an element, pointers at} */
static const struct param_pointers pointers[] = {
    {0x00000101, 0, 1, {8, 16, 24}, COUNT_PLAIN},   /* SYSTEM_GET_BUILD_VERSION */
    {0x00000127, 128, 4, {160, 168}, COUNT_SQUARE}, /* SYSTEM_GET_P2P_CAPS: a matrix of GPUs */
    {0x00000202, 0, 0, {16}, COUNT_NONE},           /* GPU_GET_ID_INFO: a name that the driver never writes */
    {0x00410110, 0, 8, {8}, COUNT_PLAIN},           /* GET_SURFACE_INFO */
    {0x00800201, 0, 4, {8}, COUNT_PLAIN},           /* GPU_GET_CLASSLIST */
    {0x00801102, 0, 1, {8}, COUNT_PLAIN},           /* GR_GET_CAPS */
    {0x00801104, 0, 8, {8}, COUNT_PLAIN},           /* GR_GET_INFO */
    {0x00801301, 0, 1, {8}, COUNT_PLAIN},           /* FB_GET_CAPS */
    {0x00801401, 0, 1, {8}, COUNT_PLAIN},           /* HOST_GET_CAPS */
    {0x00801701, 0, 1, {8}, COUNT_PLAIN},           /* FIFO_GET_CAPS */
    {0x0080170D, 0, 4, {8, 16}, COUNT_PLAIN},       /* FIFO_GET_CHANNELLIST */
    {0x00801B01, 0, 1, {8}, COUNT_PLAIN},           /* MSENC_GET_CAPS */
    {0x00801C01, 0, 1, {8}, COUNT_PLAIN},           /* BSP_GET_CAPS */
    {0x20800101, 0, 8, {8}, COUNT_PLAIN},           /* GPU_GET_INFO */
    {0x20800123, 0, 4, {8}, COUNT_PLAIN},           /* GPU_GET_ENGINES */
    {0x20800124, 4, 4, {8}, COUNT_PLAIN},           /* GPU_GET_ENGINE_CLASSLIST */
    {0x20800802, 0, 8, {8}, COUNT_PLAIN},           /* BIOS_GET_INFO */
    {0x20801201, 0, 8, {8}, COUNT_PLAIN},           /* GR_GET_INFO */
    {0x20801301, 0, 8, {8}, COUNT_PLAIN},           /* FB_GET_INFO */
    {0x20801802, 0, 8, {8}, COUNT_PLAIN},           /* BUS_GET_INFO */
    {0x20802A01, 4, 1, {8}, COUNT_PLAIN},           /* CE_GET_CAPS */
    {0x83DE0315, 4, 1, {16}, COUNT_PLAIN},          /* DEBUG_READ_MEMORY */
    {0x83DE0316, 4, 1, {16}, COUNT_PLAIN},          /* DEBUG_WRITE_MEMORY */
    {0xA0BC0101, 16, 16, {24}, COUNT_PLAIN},        /* NVENC_SW_SESSION_UPDATE_INFO */
};

#define DESCRIPTOR(command, type, use) {command, sizeof(struct type), offsetof(struct type, fd), use}
static const struct param_descriptor descriptors[] = {
    DESCRIPTOR(NV0000_CTRL_CMD_OS_UNIX_EXPORT_OBJECT_TO_FD, nv0000_export_object, FILE_EXPORTS),
    DESCRIPTOR(NV0000_CTRL_CMD_OS_UNIX_IMPORT_OBJECT_FROM_FD, nv0000_import_object, FILE_IMPORTS),
    {NV0000_CTRL_CMD_OS_UNIX_GET_EXPORT_OBJECT_INFO, 80, 0, FILE_ASKED},
    DESCRIPTOR(NV0000_CTRL_CMD_OS_UNIX_CREATE_EXPORT_OBJECT_FD, nv0000_create_export_fd, FILE_ASKED),
    DESCRIPTOR(NV0000_CTRL_CMD_OS_UNIX_EXPORT_OBJECTS_TO_FD, nv0000_export_objects, FILE_EXPORTS),
    DESCRIPTOR(NV0000_CTRL_CMD_OS_UNIX_IMPORT_OBJECTS_FROM_FD, nv0000_import_objects, FILE_IMPORTS),
};

/* Sorted by class and category, as the driver's headers are. */
static const uint32_t refused_commands[] = {
    0x00000130, /* SYSTEM_EXECUTE_ACPI_METHOD */
    0x00000283, /* GPU_IDLE_CHANNELS: may hold the GPU's lock for as long as a kernel runs */
    0x00000285, /* PUSH_UCODE_IMAGE */
    0x00000602, /* NVD_GET_DUMP */
    0x00000608, /* NVD_GET_DPC_ISR_TS */
    0x00000B03, /* GPUACCT_GET_PROC_ACCOUNTING_INFO: of any process */
    0x00000B04, /* GPUACCT_GET_ACCOUNTING_PIDS */
    0x00E00101, /* EXPORT_MEM: to another node, with a descriptor */
    0x00FD0104, /* multicast: ATTACH_GPU, with a descriptor */
    0x003E0103, /* GET_SURFACE_PHYS_PAGES */
    0x00730120, /* SYSTEM_EXECUTE_ACPI_METHOD */
    0x0073015A, /* SYSTEM_SET_DISPLAY_PERF_LIMIT */
    0x00801714, /* FIFO_IDLE_CHANNELS: the same */
    0x0080180F, /* DMA_UPDATE_PDE_2 */
    0x20800122, /* GPU_EXEC_REG_OPS: names any client's channel */
    0x2080016E, /* GPU_GET_NVENC_SW_SESSION_INFO: all tenants' */
    0x208001E8, /* GPU_RPC_GSP_TEST */
    0x20800610, /* I2C_ACCESS */
    0x20800803, /* BIOS_GET_NBSI */
    0x20800806, /* BIOS_GET_NBSI_OBJ */
    0x20801327, /* FB_GET_COMPBITCOPY_INFO */
    0x20801336, /* FB_GET_AMAP_CONF */
    0x20801349, /* FB_GET_CLIENT_ALLOCATION_INFO */
    0x20802002, /* PERF_GET_LEVEL_INFO */
    0x20802083, /* PERF_GET_GPUMON_PERFMON_UTIL_SAMPLES: of all processes */
    0x20802204, /* RC_READ_VIRTUAL_MEM */
    0x20802402, /* NVD_GET_DUMP */
    0x402C0102, /* I2C_INDEXED */
    0x402C0105, /* I2C_TRANSACTION */
    0x83DE0326, /* DEBUG_READ_BATCH_MEMORY */
    0x83DE0327, /* DEBUG_WRITE_BATCH_MEMORY */
    0x90F10101, /* VASPACE_GET_GMMU_FORMAT: a kernel pointer */
    0xA0800301, /* VGPU_GET_CONFIG */
    0xA06C0107, /* channel group: SET_INTERLEAVE_LEVEL */
    0xA06C0110, /* channel group: MAKE_REALTIME */
    0xA06F0109, /* channel: SET_INTERLEAVE_LEVEL */
    0xA06F0111, /* channel: RESTART_RUNLIST */
    0xB06F010B, /* MIGRATE_ENGINE_CTX_DATA */
    0xB06F010C, /* GET_ENGINE_CTX_DATA */
};

/* What a subdevice's FIFO commands may be: of the others most take any process' channels, or the whole runlist. */
static const uint32_t allowed_fifo_commands[] = {
    0x20801108, /* GET_PHYSICAL_CHANNEL_COUNT */
    0x20801109, /* GET_INFO */
    0x20801112, /* GET_DEVICE_INFO_TABLE */
    0x20801122, /* OBJSCHED_GET_CAPS */
};
#define IS_FIFO_COMMAND(command) ((command) >> 8 == 0x208011)
/* Objects of the driver's kernel half: fault and access counter buffers. */
#define IS_KERNEL_COMMAND(command) ((command) >> 16 == 0xB069 || (command) >> 16 == 0xC365 || (command) >> 16 == 0xC369)

static const uint32_t refused_classes[] = {
    0x0071, /* NV01_MEMORY_SYSTEM_OS_DESCRIPTOR: pins the caller's pages; its own door is NV_ESC_RM_ALLOC_MEMORY */
    0x0081, /* NV01_MEMORY_LIST_SYSTEM */
    0x0082, /* NV01_MEMORY_LIST_FBMEM */
    0x0083, /* NV01_MEMORY_LIST_OBJECT */
    0x0092, /* NV0092_RG_LINE_CALLBACK */
    0x00B1, /* NV01_MEMORY_HW_RESOURCES */
    0x00C1, /* NV_FB_SEGMENT */
    0x00C2, /* NV01_MEMORY_LOCAL_PHYSICAL */
    0x503C, /* NV50_THIRD_PARTY_P2P: GPUDirect RDMA, by which a network card holds memory that the tenant has freed */
    0x9010, /* NV9010_VBLANK_CALLBACK */
    0x90CD, /* NV_EVENT_BUFFER: maps its records into the caller */
};

const struct param_pointers *params_pointers(uint32_t command)
{
    for (size_t i = 0; i < COUNT_OF(pointers); i++)
        if (pointers[i].command == command)
            return &pointers[i];
    return NULL;
}

const struct param_descriptor *params_descriptor(uint32_t command)
{
    for (size_t i = 0; i < COUNT_OF(descriptors); i++)
        if (descriptors[i].command == command)
            return &descriptors[i];
    return NULL;
}

bool params_carried(uint32_t command, const void *params, struct carried *out)
{
    const struct nv0000_export_objects *several = params;
    const struct nv0000_import_objects *imported = params;
    const uint32_t *handles = NULL;

    *out = (struct carried){.count = 1};
    switch (command) {
    case NV0000_CTRL_CMD_OS_UNIX_EXPORT_OBJECT_TO_FD:
        handles = &((const struct nv0000_export_object *)params)->object;
        break;
    case NV0000_CTRL_CMD_OS_UNIX_IMPORT_OBJECT_FROM_FD:
        handles = &((const struct nv0000_import_object *)params)->object;
        out->parent = ((const struct nv0000_import_object *)params)->parent;
        break;
    case NV0000_CTRL_CMD_OS_UNIX_EXPORT_OBJECTS_TO_FD:
        if (several->count <= NV0000_EXPORT_OBJECTS_MAX)
            handles = several->objects;
        out->count = several->count;
        out->index = several->index;
        break;
    case NV0000_CTRL_CMD_OS_UNIX_IMPORT_OBJECTS_FROM_FD:
        if (imported->count <= NV0000_IMPORT_OBJECTS_MAX)
            handles = imported->objects;
        out->parent = imported->parent;
        out->count = imported->count;
        out->index = imported->index;
        break;
    }
    if (handles)
        memcpy(out->handles, handles, out->count * sizeof *handles);
    return handles != NULL;
}

bool params_command_refused(uint32_t command)
{
    if (IS_KERNEL_COMMAND(command))
        return true;
    if (IS_FIFO_COMMAND(command))
        return !is_among(command, allowed_fifo_commands, COUNT_OF(allowed_fifo_commands));
    return is_among(command, refused_commands, COUNT_OF(refused_commands));
}

bool params_class_refused(uint32_t class) { return is_among(class, refused_classes, COUNT_OF(refused_classes)); }
