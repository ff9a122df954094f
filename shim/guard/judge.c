#include "judge.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>

#include "ledger.h"
#include "params.h"

/* A context has 20; more than this nobody needs, and each costs the scheduler time. */
#define MAX_TENANT_CHANNELS 2048

static struct verdict decide(enum verdict_kind kind) { return (struct verdict){.kind = kind}; }
static struct verdict say_status(uint32_t status, uint32_t offset)
{
    return (struct verdict){.kind = VERDICT_STATUS, .status = status, .status_offset = offset};
}
static struct verdict say_errno(int error) { return (struct verdict){.kind = VERDICT_ERRNO, .error = error}; }

bool judge_is_tracked(uint32_t class)
{
    return NV_CLASS_IS_CHANNEL(class) || class == KEPLER_CHANNEL_GROUP_A || class == NV01_DEVICE_0 ||
           class == NV20_SUBDEVICE_0 || class == NV01_MEMORY_LOCAL_USER;
}

/* Under which parents memory and channels may lie: known ones, on the tenant's own GPU. */
static bool on_own_gpu(const struct call *call, uint32_t root, uint32_t parent)
{
    const struct ledger_object *above = ledger_find(root, parent);

    return above && above->handle != above->root && (int)above->gpu == tenants[call->slot].gpu;
}

static bool is_event(uint32_t class) { return class == NV01_EVENT || class == NV01_EVENT_OS_EVENT; }

static struct verdict judge_alloc(struct call *call)
{
    struct nvos64 *alloc = &call->alloc;

    if (call->size == sizeof(struct nvos64)) {
        *alloc = call->args.alloc;
        call->alloc_status_offset = offsetof(struct nvos64, status);
    } else if (call->size == sizeof(struct nvos21)) {
        const struct nvos21 *old = &call->args.alloc_short;
        *alloc = (struct nvos64){.root = old->root,
                                 .parent = old->parent,
                                 .object = old->object,
                                 .class = old->class,
                                 .params = old->params,
                                 .params_size = old->params_size};
        call->alloc_status_offset = offsetof(struct nvos21, status);
    } else {
        return say_errno(EINVAL); /* as the driver says to a size it does not know */
    }
    if (NV_CLASS_IS_ROOT(alloc->class))
        return call->wrapped || IS_LEDGER_ROOT(alloc->object) ? say_errno(EINVAL) : decide(VERDICT_ROOT);
    if (ledger_root_owner(alloc->root) != call->slot)
        return say_status(NV_ERR_INVALID_CLIENT, call->alloc_status_offset);
    if (params_class_refused(alloc->class))
        return say_status(NV_ERR_NOT_SUPPORTED, call->alloc_status_offset); /* what CUDA does without */
    bool channel = NV_CLASS_IS_CHANNEL(alloc->class);
    if ((channel || alloc->class == NV01_MEMORY_LOCAL_USER) && !on_own_gpu(call, alloc->root, alloc->parent))
        return say_status(NV_ERR_INVALID_OBJECT_PARENT, call->alloc_status_offset);
    if (channel && tenants[call->slot].channels >= MAX_TENANT_CHANNELS)
        return say_status(NV_ERR_NO_MEMORY, call->alloc_status_offset);
    return decide(VERDICT_ALLOC);
}

static struct verdict judge_free(struct call *call)
{
    int owner = ledger_root_owner(call->args.free.root);

    if (call->size != sizeof(struct nvos00))
        return say_errno(EINVAL);
    if (owner >= 0 && owner != call->slot)
        return say_status(NV_ERR_INVALID_CLIENT, offsetof(struct nvos00, status));
    return decide(VERDICT_FREE);
}

static struct verdict judge_control(struct call *call)
{
    const struct nvos54 *control = &call->args.control;
    uint32_t offset = offsetof(struct nvos54, status);

    if (call->size != sizeof(struct nvos54))
        return say_errno(EINVAL);
    int owner = ledger_root_owner(control->client);
    if (owner >= 0 && owner != call->slot)
        return say_status(NV_ERR_INVALID_CLIENT, offset);
    if (params_command_refused(control->command))
        return say_status(NV_ERR_INSUFFICIENT_PERMISSIONS, offset);
    /* Flags change how the driver reads the parameters (serialised ones hold pointers of their own): CUDA sets none. */
    if (control->flags)
        return say_status(NV_ERR_NOT_SUPPORTED, offset);
    if (control->params_size > PARAMS_MAX)
        return say_status(NV_ERR_INVALID_ARGUMENT, offset);
    /* A tenant's timeslice is the scheduler's to choose; CUDA sets it once, when a context ends, and is told yes. */
    if (control->command == NVA06C_CTRL_CMD_SET_TIMESLICE)
        return say_status(NV_OK, offset);
    return decide(VERDICT_CONTROL);
}

static struct verdict judge_dup(struct call *call)
{
    const struct nvos55 *dup = &call->args.dup;

    if (call->size != sizeof(struct nvos55))
        return say_errno(EINVAL);
    if (ledger_root_owner(dup->client) != call->slot || ledger_root_owner(dup->client_source) != call->slot)
        return say_status(NV_ERR_INVALID_CLIENT, offsetof(struct nvos55, status));
    return decide(VERDICT_DUP);
}

static struct verdict judge_heap(struct call *call)
{
    const struct nvos32 *heap = &call->args.heap;

    if (call->size != sizeof(struct nvos32))
        return say_errno(EINVAL);
    if (ledger_root_owner(heap->root) != call->slot)
        return say_status(NV_ERR_INVALID_CLIENT, offsetof(struct nvos32, status));
    switch (heap->function) {
    case NVOS32_FUNCTION_ALLOC_SIZE:
    case NVOS32_FUNCTION_ALLOC_SIZE_RANGE:
        if (!on_own_gpu(call, heap->root, heap->parent))
            return say_status(NV_ERR_INVALID_OBJECT_PARENT, offsetof(struct nvos32, status));
        return decide(VERDICT_HEAP_ALLOC);
    case NVOS32_FUNCTION_FREE: return decide(VERDICT_HEAP_FREE);
    case NVOS32_FUNCTION_INFO:
    case NVOS32_FUNCTION_GET_MEM_ALIGNMENT: return decide(VERDICT_HEAP_ASK);
    default: return say_status(NV_ERR_NOT_SUPPORTED, offsetof(struct nvos32, status));
    }
}

/*
 * The shim makes clients by this door, so that they are their process' own. The kernel reads the arguments again, and
 * looks the descriptor up again: what a racing thread can make of it instead carries neither bytes nor channels, for
 * those need parameters. Wrapped, the number itself would be read again.
 */
static struct verdict judge_object(struct call *call)
{
    if (call->wrapped || call->size != sizeof(struct nvos05) || !NV_CLASS_IS_ROOT(call->args.object.class) ||
        IS_LEDGER_ROOT(call->args.object.object))
        return say_errno(ENOTTY);
    return decide(VERDICT_CONTINUE);
}

static struct verdict judge_refused(struct call *call)
{
    (void)call;
    return say_errno(ENOTTY);
}

/* One line a door that the launcher's filter sends here, as it is or wrapped. */
static const struct {
    uint32_t nr, wants, client_offset;
    struct verdict (*judge)(struct call *);
} doors[] = {
    {NV_ESC_RM_FREE, sizeof(struct nvos00), offsetof(struct nvos00, root), judge_free},
    {NV_ESC_RM_CONTROL, sizeof(struct nvos54), offsetof(struct nvos54, client), judge_control},
    {NV_ESC_RM_ALLOC, sizeof(struct nvos64), offsetof(struct nvos64, root), judge_alloc},
    {NV_ESC_RM_DUP_OBJECT, sizeof(struct nvos55), offsetof(struct nvos55, client), judge_dup},
    {NV_ESC_RM_VID_HEAP_CONTROL, sizeof(struct nvos32), offsetof(struct nvos32, root), judge_heap},
    {NV_ESC_RM_ALLOC_OBJECT, sizeof(struct nvos05), offsetof(struct nvos05, root), judge_object},
    /* any client's channels; memory that outlives every account */
    {NV_ESC_RM_IDLE_CHANNELS, 0, 0, judge_refused},
    {NV_ESC_EXPORT_TO_DMABUF_FD, 0, 0, judge_refused},
};

uint32_t judge_wants(uint32_t nr, uint32_t size)
{
    for (size_t i = 0; i < sizeof doors / sizeof *doors; i++)
        if (doors[i].nr == nr)
            return size < doors[i].wants ? size : doors[i].wants;
    return 0;
}

uint32_t judge_client(const struct call *call)
{
    uint32_t client = 0;

    for (size_t i = 0; i < sizeof doors / sizeof *doors; i++)
        if (doors[i].nr == call->nr && doors[i].wants)
            memcpy(&client, call->args.bytes + doors[i].client_offset, sizeof client);
    return client;
}

struct verdict judge(struct call *call)
{
    if (IS_LEDGER_ROOT(judge_client(call))) /* numbers of the ledger's own */
        return say_errno(EINVAL);
    /* On a GPU's own node the driver makes events and nothing else. */
    if (call->file == FILE_GPU && !(call->nr == NV_ESC_RM_ALLOC && is_event(call->args.alloc.class)))
        return say_errno(EINVAL);
    for (size_t i = 0; i < sizeof doors / sizeof *doors; i++)
        if (doors[i].nr == call->nr)
            return doors[i].judge(call);
    return say_errno(ENOTTY);
}

/*
 * Another device's ioctl whose low byte looks like ours. The kernel looks the descriptor up again when it goes on, and
 * by then it may be the driver's: so it may go on only with a size, in a register, that the driver does not take.
 */
bool judge_is_harmless_elsewhere(uint32_t nr, uint32_t size)
{
    if (nr == NV_ESC_IOCTL_XFER_CMD)
        return size != sizeof(struct nv_xfer);
    for (size_t i = 0; i < sizeof doors / sizeof *doors; i++)
        if (doors[i].nr == nr)
            return size == 0 || (doors[i].wants && size != doors[i].wants &&
                                 !(nr == NV_ESC_RM_ALLOC && size == sizeof(struct nvos21)));
    return true;
}
