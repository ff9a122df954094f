#include "judge.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>

#include "backend.h"
#include "ledger.h"

/* A context has 20; more than this nobody needs, and each costs the scheduler time. */
#define MAX_TENANT_CHANNELS 2048

static struct verdict go_on(void) { return (struct verdict){.kind = VERDICT_CONTINUE}; }
static struct verdict say_status(uint32_t status, uint32_t offset)
{
    return (struct verdict){.kind = VERDICT_STATUS, .status = status, .status_offset = offset};
}
static struct verdict say_errno(int error) { return (struct verdict){.kind = VERDICT_ERRNO, .error = error}; }

static uint32_t u32_at(const struct call *call, uint32_t offset)
{
    uint32_t value;
    memcpy(&value, call->args.bytes + offset, sizeof value);
    return value;
}

/* Objects that the scheduler or the tree needs to know, though the kernel makes them. */
static struct verdict note_object(const struct call *call)
{
    const struct nvos64 *alloc = &call->alloc;
    struct ledger_object *object = ledger_find(alloc->root, alloc->object);
    uint32_t class = alloc->class;

    if (!NV_CLASS_IS_CHANNEL(class) && class != KEPLER_CHANNEL_GROUP_A && class != NV01_DEVICE_0 &&
        class != NV20_SUBDEVICE_0)
        return go_on();
    if (object && object->state != OBJECT_FREE)
        return go_on(); /* the driver will refuse the number that is taken */
    if (!alloc->object)
        return go_on();
    if (NV_CLASS_IS_CHANNEL(class) && tenants[call->slot].channels >= MAX_TENANT_CHANNELS)
        return say_status(NV_ERR_NO_MEMORY, call->alloc_status_offset);
    if (ledger_reserve(call->slot, call->pid, alloc->root, alloc->parent, alloc->object, class, 0, &object) !=
        RESERVE_OK)
        return say_status(NV_ERR_NO_MEMORY, call->alloc_status_offset);
    object->state = OBJECT_HELD;
    return go_on();
}

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
        return backend->performs(alloc->class) ? (struct verdict){.kind = VERDICT_ALLOC} : go_on();
    if (ledger_root_owner(alloc->root) != call->slot)
        return say_status(NV_ERR_INVALID_CLIENT, call->alloc_status_offset);
    if (backend->performs(alloc->class))
        return (struct verdict){.kind = VERDICT_ALLOC};
    return note_object(call);
}

static struct verdict judge_free(struct call *call)
{
    int owner = ledger_root_owner(call->args.free.root);

    if (call->size != sizeof(struct nvos00))
        return say_errno(EINVAL);
    if (owner >= 0 && owner != call->slot)
        return say_status(NV_ERR_INVALID_CLIENT, offsetof(struct nvos00, status));
    struct ledger_object *object = ledger_find(call->args.free.root, call->args.free.object);
    if (owner < 0 || !object)
        return go_on();
    /* performed, so that only what the driver really freed leaves the account */
    return (struct verdict){.kind = VERDICT_FREE};
}

static struct verdict judge_control(struct call *call)
{
    const struct nvos54 *control = &call->args.control;

    if (call->size != sizeof(struct nvos54))
        return say_errno(EINVAL);
    /* This one command takes any process' channels off the GPU, or puts one's own back: nobody's but the guard's. */
    if (control->command == NV2080_CTRL_CMD_FIFO_DISABLE_CHANNELS)
        return say_status(NV_ERR_INSUFFICIENT_PERMISSIONS, offsetof(struct nvos54, status));
    int owner = ledger_root_owner(control->client);
    if (owner >= 0 && owner != call->slot)
        return say_status(NV_ERR_INVALID_CLIENT, offsetof(struct nvos54, status));
    struct verdict verdict = go_on();
    verdict.schedules = control->command == NVA06C_CTRL_CMD_GPFIFO_SCHEDULE ||
                        control->command == NVA06F_CTRL_CMD_GPFIFO_SCHEDULE;
    if (verdict.schedules)
        ledger_note_scheduled(control->client, control->object);
    return verdict;
}

static struct verdict judge_dup(struct call *call)
{
    int owner;

    if (call->size != sizeof(struct nvos55))
        return say_errno(EINVAL);
    owner = ledger_root_owner(call->args.dup.client_source);
    if (owner >= 0 && owner != call->slot)
        return say_status(NV_ERR_INVALID_CLIENT, offsetof(struct nvos55, status));
    return go_on();
}

/* The older doors are shut to video memory until they are accounted: a clean refusal, never uncounted memory. */
static struct verdict judge_alloc_memory(struct call *call)
{
    if (call->size != NVOS02_SIZE)
        return say_errno(EINVAL);
    if (u32_at(call, NVOS02_CLASS_OFFSET) == NV01_MEMORY_LOCAL_USER)
        return say_status(NV_ERR_NO_MEMORY, NVOS02_STATUS_OFFSET);
    return go_on();
}

static struct verdict judge_vid_heap(struct call *call)
{
    enum { ALLOC_SIZE = 2, TILED_PITCH_HEIGHT = 6, ALLOC_SIZE_RANGE = 14 };
    uint32_t function;

    if (call->size != NVOS32_SIZE)
        return say_errno(EINVAL);
    function = u32_at(call, NVOS32_FUNCTION_OFFSET);
    if (function == ALLOC_SIZE || function == TILED_PITCH_HEIGHT || function == ALLOC_SIZE_RANGE)
        return say_status(NV_ERR_NO_MEMORY, NVOS32_STATUS_OFFSET);
    return go_on();
}

/* One line a door. What is not listed goes through unseen: the launcher's filter never sends it. */
static const struct {
    uint32_t nr, wants;
    struct verdict (*judge)(struct call *);
} doors[] = {
    {NV_ESC_RM_ALLOC_MEMORY, NVOS02_SIZE, judge_alloc_memory},
    {NV_ESC_RM_FREE, sizeof(struct nvos00), judge_free},
    {NV_ESC_RM_CONTROL, sizeof(struct nvos54), judge_control},
    {NV_ESC_RM_ALLOC, sizeof(struct nvos64), judge_alloc},
    {NV_ESC_RM_DUP_OBJECT, sizeof(struct nvos55), judge_dup},
    {NV_ESC_RM_VID_HEAP_CONTROL, NVOS32_SIZE, judge_vid_heap},
};

uint32_t judge_wants(uint32_t nr, uint32_t size)
{
    for (size_t i = 0; i < sizeof doors / sizeof *doors; i++)
        if (doors[i].nr == nr)
            return size < doors[i].wants ? size : doors[i].wants;
    return 0;
}

struct verdict judge(struct call *call)
{
    for (size_t i = 0; i < sizeof doors / sizeof *doors; i++)
        if (doors[i].nr == call->nr)
            return doors[i].judge(call);
    return go_on();
}
