/* Verdicts: two tenants, and what each may not do to the other. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "backend.h"
#include "check.h"
#include "judge.h"
#include "ledger.h"

enum { ALICE = 3, BOB = 4 };
enum { ALICES = 0xC1D00001, BOBS = 0xC1D00002, UNKNOWN = 0xC1D000FF };

static void make_tenant(int slot)
{
    int fd = memfd_create("page", MFD_CLOEXEC);
    CHECK(fd >= 0 && ftruncate(fd, sizeof(struct vgpu_slice_page)) == 0);
    CHECK(ledger_set_tenant(slot, "t", 0, 1 << 30, 25000, VGPU_POLICY_HARD, fd));
    close(fd);
}

static void set_up(void)
{
    char path[] = "/tmp/vgpu-ledger-XXXXXX";
    int fd = mkstemp(path);
    close(fd);
    ledger_open(path);
    unlink(path);
    make_tenant(ALICE);
    make_tenant(BOB);
}

static struct verdict judge_bytes(int slot, uint32_t nr, const void *args, uint32_t size)
{
    struct call call = {.slot = slot, .pid = 100 + slot, .nr = nr, .size = size};
    memcpy(call.args.bytes, args, judge_wants(nr, size));
    return judge(&call);
}

static void hold(int slot, uint32_t root, uint32_t parent, uint32_t handle, uint32_t class, uint64_t bytes)
{
    struct ledger_object *object;
    CHECK(ledger_reserve(slot, 100 + slot, root, parent, handle, class, bytes, &object) == RESERVE_OK);
    ledger_commit(object, handle, bytes);
}

static void a_client_that_nobody_proved_is_refused(void)
{
    struct nvos64 alloc = {.root = UNKNOWN, .parent = UNKNOWN, .object = 0x77, .class = NV01_DEVICE_0};
    struct verdict verdict = judge_bytes(ALICE, NV_ESC_RM_ALLOC, &alloc, sizeof alloc);
    CHECK(verdict.kind == VERDICT_STATUS && verdict.status == NV_ERR_INVALID_CLIENT);
    CHECK(ledger_root_owner(UNKNOWN) == -1);
}

static void a_client_number_that_is_reused_is_its_new_owners(void)
{
    CHECK(ledger_claim_root(ALICE, 103, UNKNOWN));
    hold(ALICE, UNKNOWN, UNKNOWN, 0x10, NV01_MEMORY_LOCAL_USER, 1 << 20);
    CHECK(ledger_claim_root(BOB, 104, UNKNOWN));
    CHECK(ledger_root_owner(UNKNOWN) == BOB && tenants[ALICE].page->memory_used == 0);
}

static void a_neighbours_client_is_out_of_reach(void)
{
    struct nvos64 alloc = {.root = BOBS, .parent = BOBS, .object = 0x77, .class = NV01_MEMORY_LOCAL_USER};
    struct nvos00 free = {.root = BOBS, .object = 0x20};
    struct nvos54 control = {.client = BOBS, .object = 0x20, .command = NVA06C_CTRL_CMD_SET_TIMESLICE};
    struct nvos55 dup = {.client = ALICES, .client_source = BOBS, .object_source = 0x20};
    struct verdict verdict;

    verdict = judge_bytes(ALICE, NV_ESC_RM_ALLOC, &alloc, sizeof alloc);
    CHECK(verdict.kind == VERDICT_STATUS && verdict.status == NV_ERR_INVALID_CLIENT);
    verdict = judge_bytes(ALICE, NV_ESC_RM_FREE, &free, sizeof free);
    CHECK(verdict.kind == VERDICT_STATUS && verdict.status_offset == offsetof(struct nvos00, status));
    verdict = judge_bytes(ALICE, NV_ESC_RM_CONTROL, &control, sizeof control);
    CHECK(verdict.kind == VERDICT_STATUS && verdict.status_offset == offsetof(struct nvos54, status));
    verdict = judge_bytes(ALICE, NV_ESC_RM_DUP_OBJECT, &dup, sizeof dup);
    CHECK(verdict.kind == VERDICT_STATUS && verdict.status_offset == offsetof(struct nvos55, status));
    CHECK(ledger_find(BOBS, 0x20) != NULL);
}

static void nobody_switches_channels(void)
{
    struct nvos54 control = {.client = ALICES, .object = 1, .command = NV2080_CTRL_CMD_FIFO_DISABLE_CHANNELS};
    struct verdict verdict = judge_bytes(ALICE, NV_ESC_RM_CONTROL, &control, sizeof control);
    CHECK(verdict.kind == VERDICT_STATUS && verdict.status == NV_ERR_INSUFFICIENT_PERMISSIONS);
}

static void the_older_doors_give_no_uncounted_memory(void)
{
    unsigned char memory[NVOS02_SIZE] = {0}, heap[NVOS32_SIZE] = {0};
    struct verdict verdict;

    memory[NVOS02_CLASS_OFFSET] = NV01_MEMORY_LOCAL_USER;
    verdict = judge_bytes(ALICE, NV_ESC_RM_ALLOC_MEMORY, memory, sizeof memory);
    CHECK(verdict.kind == VERDICT_STATUS && verdict.status == NV_ERR_NO_MEMORY);
    memory[NVOS02_CLASS_OFFSET] = 0x3E; /* host memory */
    CHECK(judge_bytes(ALICE, NV_ESC_RM_ALLOC_MEMORY, memory, sizeof memory).kind == VERDICT_CONTINUE);
    heap[NVOS32_FUNCTION_OFFSET] = 2;
    CHECK(judge_bytes(ALICE, NV_ESC_RM_VID_HEAP_CONTROL, heap, sizeof heap).kind == VERDICT_STATUS);
    heap[NVOS32_FUNCTION_OFFSET] = 5; /* information */
    CHECK(judge_bytes(ALICE, NV_ESC_RM_VID_HEAP_CONTROL, heap, sizeof heap).kind == VERDICT_CONTINUE);
}

static void a_size_that_the_driver_does_not_know_is_its_own_error(void)
{
    static const uint32_t doors[] = {NV_ESC_RM_ALLOC,      NV_ESC_RM_FREE,         NV_ESC_RM_CONTROL,
                                     NV_ESC_RM_DUP_OBJECT, NV_ESC_RM_ALLOC_MEMORY, NV_ESC_RM_VID_HEAP_CONTROL};
    unsigned char bytes[CALL_ARGS_MAX];

    memset(bytes, 0xA5, sizeof bytes);
    for (size_t i = 0; i < sizeof doors / sizeof *doors; i++)
        for (uint32_t size = 0; size < 400; size++) {
            struct verdict verdict = judge_bytes(ALICE, doors[i], bytes, size);
            bool known = size == 16 || size == 28 || size == 32 || size == 48 || size == NVOS02_SIZE ||
                         size == NVOS32_SIZE;
            CHECK(known || (verdict.kind == VERDICT_ERRNO && verdict.error == EINVAL));
        }
}

static void the_quota_is_exact_and_freeing_a_parent_frees_its_children(void)
{
    struct ledger_object *object;

    hold(ALICE, ALICES, ALICES, 0x30, NV01_DEVICE_0, 0);
    hold(ALICE, ALICES, 0x30, 0x31, NV01_MEMORY_LOCAL_USER, 1 << 29);
    hold(ALICE, ALICES, 0x30, 0x32, NV01_MEMORY_LOCAL_USER, 1 << 29);
    CHECK(tenants[ALICE].page->memory_used == 1 << 30);
    CHECK(ledger_reserve(ALICE, 103, ALICES, 0x30, 0x33, NV01_MEMORY_LOCAL_USER, 1, &object) == RESERVE_OVER_QUOTA);
    CHECK(ledger_reserve(ALICE, 103, ALICES, 0x30, 0x33, NV01_MEMORY_LOCAL_USER, UINT64_MAX, &object) ==
          RESERVE_OVER_QUOTA);
    CHECK(tenants[ALICE].page->refusals == 2 && tenants[ALICE].page->refused_pid == 103);
    ledger_free(ALICES, 0x30);
    CHECK(tenants[ALICE].page->memory_used == 0);
    CHECK(ledger_find(ALICES, 0x31) == NULL);
    hold(ALICE, ALICES, ALICES, 0x40, NV01_MEMORY_LOCAL_USER, 1 << 20);
    ledger_free_process(100 + ALICE);
    CHECK(tenants[ALICE].page->memory_used == 0 && ledger_root_owner(ALICES) == -1);
}

static void what_a_tenant_writes_on_its_page_lifts_nothing(void)
{
    struct ledger_object *object;

    CHECK(ledger_claim_root(ALICE, 103, ALICES));
    hold(ALICE, ALICES, ALICES, 0x50, NV01_MEMORY_LOCAL_USER, 1 << 30);
    memset(tenants[ALICE].page, 0, sizeof *tenants[ALICE].page); /* one who shares its user could */
    tenants[ALICE].page->memory_quota = UINT64_MAX;
    tenants[ALICE].page->process_rows = UINT32_MAX;
    CHECK(ledger_reserve(ALICE, 103, ALICES, ALICES, 0x51, NV01_MEMORY_LOCAL_USER, 1, &object) == RESERVE_OVER_QUOTA);
    ledger_free(ALICES, 0x50);
    CHECK(tenants[ALICE].page->memory_used == 0);
}

void test_judge(void)
{
    set_up();
    CHECK(ledger_claim_root(ALICE, 103, ALICES));
    CHECK(ledger_claim_root(BOB, 104, BOBS));
    hold(BOB, BOBS, BOBS, 0x20, NV01_DEVICE_0, 0);
    a_client_that_nobody_proved_is_refused();
    a_client_number_that_is_reused_is_its_new_owners();
    a_neighbours_client_is_out_of_reach();
    nobody_switches_channels();
    the_older_doors_give_no_uncounted_memory();
    a_size_that_the_driver_does_not_know_is_its_own_error();
    the_quota_is_exact_and_freeing_a_parent_frees_its_children();
    what_a_tenant_writes_on_its_page_lifts_nothing();
}
