#define _GNU_SOURCE
#include "fake_driver.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "check.h"
#include "clients.h"
#include "reach.h"

struct fake_driver fake;

static struct holdings holdings;
static struct ledger_inflight inflight;
static unsigned char *scratch;

static void fake_alloc(struct nvos64 *call)
{
    struct nv_memory_allocation_params *memory = (void *)(uintptr_t)call->params;

    fake.allocs++;
    fake.last_params = call->params;
    call->status = fake.status;
    if (call->class == NV01_MEMORY_LOCAL_USER && fake.round_to)
        memory->size = (memory->size + fake.round_to - 1) / fake.round_to * fake.round_to;
}

struct fake_channel *fake_channel(uint32_t handle)
{
    struct fake_channel *channel = fake.channels;

    while (channel->handle && channel->handle != handle)
        channel++;
    channel->handle = handle;
    return channel;
}

static bool fake_memory_of(int index, const pid_t *pids, int count, uint64_t *bytes)
{
    (void)index, (void)pids, (void)count;
    *bytes = fake.witnessed;
    return true;
}

static bool fake_share_ring(int index, int fd, const struct channel *channel, uint32_t userd)
{
    (void)index, (void)fd, (void)channel, (void)userd;
    return !fake.no_rings;
}

static bool fake_open_ring(int index, const struct channel *channel, const struct ring_place *place, struct ring *ring)
{
    struct fake_channel *fakes = fake_channel(channel->handle);

    (void)index, (void)place;
    *ring = (struct ring){.get = &fakes->get, .put = &fakes->put};
    fake.rings_open++;
    return true;
}

static void fake_close_ring(int index, struct ring *ring)
{
    (void)index;
    *ring = (struct ring){0};
    fake.rings_open--;
}

static void answer_idle(struct nvos54 *call)
{
    const struct nv0000_idle_channels *question = (void *)(uintptr_t)call->params;
    const struct fake_channel *channel = fake_channel(question->channel);

    fake.questions++;
    call->status = channel->done == channel->put ? NV_OK : NV_ERR_TIMEOUT;
}

static void answer_whether_at_home(int fd, struct nvos54 *call)
{
    call->status = NV_ERR_INVALID_CLIENT;
    for (int i = 0; i < FAKE_HOMES; i++)
        if (fake.homes[i].root == call->client && fake.homes[i].fd == fd)
            call->status = NV_OK;
}

static void fake_control(int fd, struct nvos54 *call)
{
    if (call->command == NV0000_CTRL_CMD_GPU_GET_PROBED_IDS && fake.homes[0].root) {
        answer_whether_at_home(fd, call);
        return;
    }
    if (call->command == NV0000_CTRL_CMD_IDLE_CHANNELS) {
        answer_idle(call);
        return;
    }
    if (call->command == NV2080_CTRL_CMD_GPU_GET_PIDS) {
        struct nv2080_get_pids *answer = (void *)(uintptr_t)call->params;
        *answer = (struct nv2080_get_pids){.count = 2, .pids = {(uint32_t)getppid(), (uint32_t)getpid()}};
        call->status = NV_OK;
        return;
    }
    if (call->command == NV2080_CTRL_CMD_PERF_GET_GPUMON_PERFMON_UTIL_SAMPLES_V2) {
        struct nv2080_util_samples *answer = (void *)(uintptr_t)call->params;
        const struct nv2080_engine_util mine = {.util = 70, .pid = (uint32_t)getpid(), .kernel_pointer = 1},
                                        theirs = {.util = 30, .pid = (uint32_t)getppid(), .kernel_pointer = 2};
        answer->samples[0].engines[0] = mine;
        answer->samples[1].engines[0] = theirs;
        call->status = NV_OK;
        return;
    }
    if (call->command == NV2080_CTRL_CMD_GPU_GET_PID_INFO)
        fake.last_pid = ((struct nv2080_get_pid_info *)(uintptr_t)call->params)->list[0].pid;
    const struct param_pointers *pointers = params_pointers(call->command);
    unsigned char *params = (void *)(uintptr_t)call->params;

    fake.controls++;
    fake.last_params = call->params;
    call->status = fake.status;
    if (!params || !call->params_size)
        return;
    /* every byte is read, as the driver reads it; the sanitizers see where it goes wrong */
    unsigned sum = 0;
    for (uint32_t i = 0; i < call->params_size; i++)
        sum += params[i];
    if (pointers && pointers->pointer_offsets[0] + 8u <= call->params_size) {
        memcpy(&fake.last_pointer, params + pointers->pointer_offsets[0], sizeof fake.last_pointer);
        uint32_t count;
        memcpy(&count, params + pointers->count_offset, sizeof count);
        if (fake.last_pointer && count && pointers->element)
            *(unsigned char *)(uintptr_t)fake.last_pointer = fake.write;
    } else if (sum || fake.write) {
        params[0] = fake.write;
    }
}

static int fake_perform(int fd, pid_t pid, unsigned long request, void *arg)
{
    (void)pid;
    switch (request & 0xFF) {
    case NV_ESC_RM_ALLOC: fake_alloc(arg); return 0;
    case NV_ESC_RM_CONTROL: fake_control(fd, arg); return 0;
    case NV_ESC_RM_FREE:
        fake.frees++;
        ((struct nvos00 *)arg)->status = fake.status;
        return 0;
    case NV_ESC_RM_DUP_OBJECT:
        fake.dups++;
        ((struct nvos55 *)arg)->status = fake.status;
        return 0;
    case NV_ESC_RM_VID_HEAP_CONTROL: ((struct nvos32 *)arg)->status = fake.status; return 0;
    default: return -ENOTTY;
    }
}

static int fake_gpu_of_device(int fd, const struct nv0080_alloc_params *params)
{
    (void)fd;
    return params->device_id ? -1 : 0;
}

static enum file_kind fake_kind(int fd)
{
    (void)fd;
    return FILE_CONTROL;
}

static bool fake_client_lives(uint32_t root)
{
    (void)root;
    return true;
}

static uint32_t fake_set_channels(int index, const struct channel *channels, int count, bool on)
{
    (void)index, (void)channels, (void)count, (void)on;
    return NV_OK;
}

const struct backend fake_backend = {
    .name = "fake",
    .gpu_of_device = fake_gpu_of_device,
    .kind = fake_kind,
    .performs_roots = true,
    .perform = fake_perform,
    .client_lives = fake_client_lives,
    .set_channels = fake_set_channels,
    .memory_of = fake_memory_of,
    .share_ring = fake_share_ring,
    .open_ring = fake_open_ring,
    .close_ring = fake_close_ring,
};

void fake_open(void)
{
    backend = &fake_backend;
    fake = (struct fake_driver){0};
    CHECK(holdings_open(&holdings));
    scratch = mmap(NULL, JOB_SCRATCH, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(scratch != MAP_FAILED);
}

void fake_close(void)
{
    holdings_close(&holdings);
    munmap(scratch, JOB_SCRATCH);
}

int fake_call(int slot, uint32_t nr, uint32_t size, void *args)
{
    struct job job = {.holdings = &holdings, .inflight = &inflight, .scratch = scratch, .fd = fake.fd};
    pid_t tenant = fake.tenant ? fake.tenant : getpid();
    struct call call = {.slot = slot,
                        .pid = tenant,
                        .tid = tenant,
                        .file = FILE_CONTROL,
                        .nr = nr,
                        .size = size,
                        .address = (uintptr_t)args};

    if (!reach_read(call.tid, call.address, call.args.bytes, judge_wants(nr, size)))
        return EFAULT;
    clients_claim(&job, &call);
    ledger_lock();
    struct verdict verdict = judge(&call);
    ledger_unlock();
    return verdict.kind == VERDICT_CONTINUE ? -1 : perform(&job, &call, &verdict);
}

bool fake_sweep(int slot) { return holdings_sweep(&holdings, slot); }

bool fake_admit(int slot, uint32_t nr)
{
    struct job job = {.holdings = &holdings, .inflight = &inflight, .scratch = scratch, .fd = fake.fd};
    struct call call = {.slot = slot, .pid = getpid(), .tid = getpid(), .nr = nr};

    return clients_admit(&job, &call);
}
