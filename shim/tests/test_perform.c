/* What reaches the driver, what comes back to the tenant, and what the ledger makes of it. */
#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "check.h"
#include "fake_driver.h"
#include "reach.h"
#include "scene.h"

enum { ALICE = 5, ROOT = 0xC1D00100, OTHER_ROOT = 0xC1D00101, DEVICE = 0x100 };
#define MIB (1ull << 20)
#define QUOTA (64 * MIB)

static int ask_alloc(struct nvos64 *call) { return fake_call(ALICE, NV_ESC_RM_ALLOC, sizeof *call, call); }

static int ask_memory(uint32_t handle, uint64_t bytes, uint32_t *status)
{
    struct nv_memory_allocation_params memory = {.size = bytes};
    struct nvos64 call = {.root = ROOT,
                          .parent = DEVICE,
                          .object = handle,
                          .class = NV01_MEMORY_LOCAL_USER,
                          .params = (uintptr_t)&memory,
                          .status = 0xAAAA};
    int error = ask_alloc(&call);
    *status = call.status;
    return error;
}

static void make_client(uint32_t root)
{
    struct nv0080_alloc_params device = {0};
    struct nvos64 call = {
        .root = root, .parent = root, .object = DEVICE, .class = NV01_DEVICE_0, .params = (uintptr_t)&device};

    CHECK(ask_alloc(&call) == 0 && call.status == NV_OK);
    CHECK(ledger_root_owner(root) == ALICE); /* it proved itself with its first call */
}

/* Two pages, of which only the first is mapped. */
static unsigned char *edge(void)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    unsigned char *map = mmap(NULL, 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    CHECK(map != MAP_FAILED && munmap(map + page, page) == 0);
    return map + page;
}

static void memory_is_performed_with_the_guards_copy(void)
{
    uint32_t status;

    CHECK(ask_memory(0x200, 8 * MIB, &status) == 0 && status == NV_OK);
    CHECK(tenants[ALICE].used == 8 * MIB);
    CHECK(ask_memory(0x200, 8 * MIB, &status) == 0 && status == NV_ERR_INSERT_DUPLICATE_NAME);
    CHECK(ask_memory(0x201, QUOTA, &status) == 0 && status == NV_ERR_NO_MEMORY);
    CHECK(tenants[ALICE].page->refusals == 1); /* though it was tried twice */
    CHECK(tenants[ALICE].used == 8 * MIB);
    fake.status = NV_ERR_NO_MEMORY; /* the GPU itself is full */
    CHECK(ask_memory(0x202, MIB, &status) == 0 && status == NV_ERR_NO_MEMORY);
    fake.status = NV_OK;
    CHECK(tenants[ALICE].used == 8 * MIB);
}

static void what_is_rounded_past_the_quota_is_undone(void)
{
    uint32_t status;
    int frees = fake.frees;

    fake.round_to = QUOTA;
    CHECK(ask_memory(0x210, MIB, &status) == 0 && status == NV_ERR_NO_MEMORY);
    CHECK(fake.frees == frees + 1 && tenants[ALICE].used == 8 * MIB);
    fake.round_to = 2 * MIB;
    CHECK(ask_memory(0x210, 2 * MIB + 1, &status) == 0 && status == NV_OK);
    CHECK(tenants[ALICE].used == 12 * MIB);
    fake.round_to = 0;
}

static void parameters_at_the_edge_of_what_is_mapped_are_read_as_far_as_they_go(void)
{
    struct nv_memory_allocation_params memory = {.size = MIB};
    unsigned char *at = edge() - sizeof memory;
    struct nvos64 call = {
        .root = ROOT, .parent = DEVICE, .object = 0x220, .class = NV01_MEMORY_LOCAL_USER, .params = (uintptr_t)at};

    memcpy(at, &memory, sizeof memory);
    CHECK(ask_alloc(&call) == 0 && call.status == NV_OK);
    call.object = 0x221;
    call.params = (uintptr_t)edge(); /* nothing there at all */
    CHECK(ask_alloc(&call) == 0 && call.status == NV_ERR_INVALID_ADDRESS);
}

static void an_answer_that_cant_be_told_is_undone(void)
{
    struct nv_memory_allocation_params memory = {.size = MIB};
    struct nvos64 call = {
        .root = ROOT, .parent = DEVICE, .object = 0x230, .class = NV01_MEMORY_LOCAL_USER, .params = (uintptr_t)&memory};
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    unsigned char *map = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint64_t used = tenants[ALICE].used;
    int frees = fake.frees;

    memcpy(map, &call, sizeof call);
    CHECK(mprotect(map, page, PROT_READ) == 0);
    CHECK(fake_call(ALICE, NV_ESC_RM_ALLOC, sizeof call, map) == EFAULT);
    CHECK(fake.frees == frees + 1 && tenants[ALICE].used == used && !ledger_find(ROOT, 0x230));
    munmap(map, page);
}

static void the_driver_never_sees_a_tenants_pointer(void)
{
    unsigned char list[64] = {0};
    struct {
        uint32_t count, pad;
        uint64_t list;
    } params = {8, 0, (uintptr_t)list};
    struct nvos54 call = {
        .client = ROOT, .object = ROOT, .command = 0x20801201, .params = (uintptr_t)&params, .params_size = 16};

    fake.write = 0x5A;
    CHECK(fake_call(ALICE, NV_ESC_RM_CONTROL, sizeof call, &call) == 0 && call.status == NV_OK);
    CHECK(fake.last_params != (uintptr_t)&params && fake.last_pointer && fake.last_pointer != (uintptr_t)list);
    CHECK(list[0] == 0x5A && params.list == (uintptr_t)list && params.count == 8);
    int controls = fake.controls;
    params.count = 0x10000000; /* more than the driver would take: never asked */
    CHECK(fake_call(ALICE, NV_ESC_RM_CONTROL, sizeof call, &call) == 0 && call.status == NV_ERR_INVALID_ARGUMENT);
    params.count = 8;
    call.params_size = 4; /* too short for the pointer */
    CHECK(fake_call(ALICE, NV_ESC_RM_CONTROL, sizeof call, &call) == 0 && call.status == NV_ERR_INVALID_ARGUMENT);
    call.params = 4096;
    CHECK(fake_call(ALICE, NV_ESC_RM_CONTROL, sizeof call, &call) == 0 && call.status == NV_ERR_INVALID_ADDRESS);
    call = (struct nvos54){.client = ROOT, .object = ROOT, .command = 0x20800610, .params = 4096, .params_size = 40};
    CHECK(fake_call(ALICE, NV_ESC_RM_CONTROL, sizeof call, &call) == 0);
    CHECK(call.status == NV_ERR_INSUFFICIENT_PERMISSIONS && fake.controls == controls);
}

static struct nvos54 control_of(uint32_t command, const void *params, uint32_t size)
{
    return (struct nvos54){
        .client = ROOT, .object = ROOT, .command = command, .params = (uintptr_t)params, .params_size = size};
}

static void the_driver_tells_a_tenant_of_its_own_processes_alone(void)
{
    struct nv2080_get_pids who = {.count = 0};
    struct nv2080_get_pid_info each = {.count = 1, .list[0].pid = (uint32_t)getppid()};
    struct nvos54 call = control_of(NV2080_CTRL_CMD_GPU_GET_PIDS, &who, sizeof who);

    CHECK(fake_call(ALICE, NV_ESC_RM_CONTROL, sizeof call, &call) == 0 && call.status == NV_OK);
    CHECK(who.count == 1 && who.pids[0] == (uint32_t)reach_pid_inside(getpid()) && who.pids[1] == 0);
    call = control_of(NV2080_CTRL_CMD_GPU_GET_PID_INFO, &each, sizeof each);
    CHECK(fake_call(ALICE, NV_ESC_RM_CONTROL, sizeof call, &call) == 0 && fake.last_pid == UINT32_MAX);
    CHECK(each.list[0].pid == (uint32_t)getppid()); /* another's: as it was */
    each.list[0].pid = (uint32_t)reach_pid_inside(getpid());
    CHECK(fake_call(ALICE, NV_ESC_RM_CONTROL, sizeof call, &call) == 0 && fake.last_pid == (uint32_t)getpid());
    static struct nv2080_util_samples moments;
    struct nvos54 sampled = control_of(NV2080_CTRL_CMD_PERF_GET_GPUMON_PERFMON_UTIL_SAMPLES_V2, &moments,
                                       sizeof moments);
    CHECK(fake_call(ALICE, NV_ESC_RM_CONTROL, sizeof sampled, &sampled) == 0 && sampled.status == NV_OK);
    const struct nv2080_engine_util *one = &moments.samples[0].engines[0], *other = &moments.samples[1].engines[0];
    CHECK(one->util == 70 && one->pid == (uint32_t)reach_pid_inside(getpid()) && !one->kernel_pointer);
    CHECK(other->util == 0 && other->pid == NV2080_GPUMON_PID_INVALID && !other->kernel_pointer);
    each.count = 0xFFFFFFFF;
    CHECK(fake_call(ALICE, NV_ESC_RM_CONTROL, sizeof call, &call) == 0 && call.status == NV_ERR_INVALID_ARGUMENT);
}

static void a_second_name_is_no_second_charge(void)
{
    uint64_t used = tenants[ALICE].used;
    struct nvos55 dup = {
        .client = OTHER_ROOT, .parent = DEVICE, .object = 0x300, .client_source = ROOT, .object_source = 0x200};
    struct nvos00 free = {.root = ROOT, .object = 0x200};

    CHECK(fake_call(ALICE, NV_ESC_RM_DUP_OBJECT, sizeof dup, &dup) == 0 && dup.status == NV_OK);
    CHECK(tenants[ALICE].used == used);
    CHECK(fake_call(ALICE, NV_ESC_RM_FREE, sizeof free, &free) == 0 && free.status == NV_OK);
    CHECK(tenants[ALICE].used == used); /* the other name holds it */
    free = (struct nvos00){.root = OTHER_ROOT, .object = 0x300};
    CHECK(fake_call(ALICE, NV_ESC_RM_FREE, sizeof free, &free) == 0 && free.status == NV_OK);
    CHECK(tenants[ALICE].used == used - 8 * MIB);
}

static void the_older_door_counts_too(void)
{
    uint64_t used = tenants[ALICE].used, size = 4 * MIB;
    struct nvos32 heap = {.root = ROOT, .parent = DEVICE, .function = NVOS32_FUNCTION_ALLOC_SIZE};

    memcpy((unsigned char *)&heap + NVOS32_ALLOC_SIZE_SIZE_OFFSET, &size, sizeof size);
    CHECK(fake_call(ALICE, NV_ESC_RM_VID_HEAP_CONTROL, sizeof heap, &heap) == 0 && heap.status == NV_OK);
    CHECK(heap.memory && tenants[ALICE].used == used + size);
    size = QUOTA;
    struct nvos32 large = {.root = ROOT, .parent = DEVICE, .function = NVOS32_FUNCTION_ALLOC_SIZE_RANGE};
    memcpy((unsigned char *)&large + NVOS32_ALLOC_SIZE_RANGE_SIZE_OFFSET, &size, sizeof size);
    CHECK(fake_call(ALICE, NV_ESC_RM_VID_HEAP_CONTROL, sizeof large, &large) == 0 && large.status == NV_ERR_NO_MEMORY);
    heap.function = NVOS32_FUNCTION_FREE;
    CHECK(fake_call(ALICE, NV_ESC_RM_VID_HEAP_CONTROL, sizeof heap, &heap) == 0 && tenants[ALICE].used == used);
    heap.function = 27; /* pins the caller's pages, which here would be the guard's */
    CHECK(fake_call(ALICE, NV_ESC_RM_VID_HEAP_CONTROL, sizeof heap, &heap) == 0 && heap.status == NV_ERR_NOT_SUPPORTED);
}

void test_perform(void)
{
    open_test_ledger();
    make_test_tenant(ALICE, QUOTA);
    fake_open();
    make_client(ROOT);
    make_client(OTHER_ROOT);
    memory_is_performed_with_the_guards_copy();
    what_is_rounded_past_the_quota_is_undone();
    parameters_at_the_edge_of_what_is_mapped_are_read_as_far_as_they_go();
    an_answer_that_cant_be_told_is_undone();
    the_driver_never_sees_a_tenants_pointer();
    the_driver_tells_a_tenant_of_its_own_processes_alone();
    a_second_name_is_no_second_charge();
    the_older_door_counts_too();
    fake_close();
    close_test_ledger();
}
