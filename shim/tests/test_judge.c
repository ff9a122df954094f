/* Verdicts: two tenants, and what each may not do to the other. */
#include <errno.h>
#include <string.h>

#include "backend.h"
#include "check.h"
#include "judge.h"
#include "ledger.h"
#include "scene.h"

enum { ALICE = 3, BOB = 4 };
enum { ALICES = 0xC1D00001, BOBS = 0xC1D00002, UNKNOWN = 0xC1D000FF };

static void set_up(void)
{
    static struct backend none = {.name = "none"};

    backend = &none;
    open_test_ledger();
    make_test_tenant(ALICE, 1 << 30);
    make_test_tenant(BOB, 1 << 30);
}

static struct verdict judge_bytes(int slot, uint32_t nr, const void *args, uint32_t size)
{
    struct call call = {.slot = slot, .pid = 100 + slot, .file = FILE_CONTROL, .nr = nr, .size = size};
    memcpy(call.args.bytes, args, judge_wants(nr, size));
    return judge(&call);
}

static void hold(int slot, uint32_t root, uint32_t parent, uint32_t handle, uint32_t class, uint64_t bytes)
{
    struct ledger_object *object;
    CHECK(ledger_reserve(slot, 100 + slot, root, parent, handle, class, bytes, &object) == RESERVE_OK);
    CHECK(ledger_commit(object, bytes));
}

static void a_client_that_nobody_proved_is_refused(void)
{
    struct nvos64 alloc = {.root = UNKNOWN, .parent = UNKNOWN, .object = 0x77, .class = NV01_DEVICE_0};
    struct verdict verdict = judge_bytes(ALICE, NV_ESC_RM_ALLOC, &alloc, sizeof alloc);
    CHECK(verdict.kind == VERDICT_STATUS && verdict.status == NV_ERR_INVALID_CLIENT);
    CHECK(ledger_root_owner(UNKNOWN) == -1);
}

static void a_client_stays_its_makers(void)
{
    CHECK(ledger_claim_root(ALICE, 103, UNKNOWN));
    hold(ALICE, UNKNOWN, UNKNOWN, 0x10, NV01_MEMORY_LOCAL_USER, 1 << 20);
    CHECK(!ledger_claim_root(BOB, 104, UNKNOWN)); /* though he holds the file too */
    CHECK(ledger_root_owner(UNKNOWN) == ALICE && tenants[ALICE].used == 1 << 20);
    ledger_free(UNKNOWN, UNKNOWN);
    CHECK(ledger_claim_root(BOB, 104, UNKNOWN));
    ledger_free(UNKNOWN, UNKNOWN);
}

static void an_object_is_not_its_own_parent(void)
{
    struct ledger_object *object;

    CHECK(ledger_reserve(ALICE, 103, ALICES, 0x66, 0x66, NV01_MEMORY_LOCAL_USER, 0, &object) == RESERVE_TAKEN);
    ledger_free(ALICES, 0x66);
}

static void another_devices_ioctl_goes_on_only_with_a_size_that_the_driver_does_not_take(void)
{
    CHECK(judge_is_harmless_elsewhere(NV_ESC_RM_CONTROL, 0)); /* a terminal's */
    CHECK(!judge_is_harmless_elsewhere(NV_ESC_RM_CONTROL, sizeof(struct nvos54)));
    CHECK(!judge_is_harmless_elsewhere(NV_ESC_RM_ALLOC, sizeof(struct nvos64)));
    CHECK(!judge_is_harmless_elsewhere(NV_ESC_RM_ALLOC, sizeof(struct nvos21)));
    CHECK(!judge_is_harmless_elsewhere(NV_ESC_IOCTL_XFER_CMD, sizeof(struct nv_xfer)));
    CHECK(!judge_is_harmless_elsewhere(NV_ESC_RM_IDLE_CHANNELS, 64));
    CHECK(!judge_is_harmless_elsewhere(NV_ESC_RM_ALLOC_OBJECT, 20));
}

static struct verdict judge_making(uint32_t class, uint32_t size, bool wrapped)
{
    struct call making = {.slot = ALICE, .pid = 100, .tid = 100, .file = FILE_CONTROL, .nr = NV_ESC_RM_ALLOC_OBJECT};

    making.size = size;
    making.wrapped = wrapped;
    making.args.object = (struct nvos05){.class = class};
    return judge(&making);
}

/* By the door without parameters the kernel makes clients, and nothing else is let through. */
static void clients_alone_are_made_without_parameters(void)
{
    CHECK(judge_making(NV01_ROOT_CLIENT, sizeof(struct nvos05), false).kind == VERDICT_CONTINUE);
    CHECK(judge_making(NV01_ROOT_CLIENT, sizeof(struct nvos05), true).kind == VERDICT_ERRNO);
    CHECK(judge_making(NV01_ROOT_CLIENT, sizeof(struct nvos05) + 4, false).kind == VERDICT_ERRNO);
    CHECK(judge_making(NV01_MEMORY_LOCAL_USER, sizeof(struct nvos05), false).kind == VERDICT_ERRNO);
    CHECK(judge_making(NV20_SUBDEVICE_0, sizeof(struct nvos05), false).kind == VERDICT_ERRNO);
}

static void a_neighbours_client_is_out_of_reach(void)
{
    struct nvos64 alloc = {.root = BOBS, .parent = BOBS, .object = 0x77, .class = NV01_MEMORY_LOCAL_USER};
    struct nvos00 free = {.root = BOBS, .object = 0x20};
    struct nvos54 control = {.client = BOBS, .object = 0x20, .command = NVA06C_CTRL_CMD_GPFIFO_SCHEDULE};
    struct nvos32 heap = {.root = BOBS, .function = NVOS32_FUNCTION_FREE, .memory = 0x20};
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
    verdict = judge_bytes(ALICE, NV_ESC_RM_VID_HEAP_CONTROL, &heap, sizeof heap);
    CHECK(verdict.kind == VERDICT_STATUS && verdict.status_offset == offsetof(struct nvos32, status));
    CHECK(ledger_find(BOBS, 0x20) != NULL);
    dup.client_source = UNKNOWN; /* whose it is, nobody said */
    CHECK(judge_bytes(ALICE, NV_ESC_RM_DUP_OBJECT, &dup, sizeof dup).status == NV_ERR_INVALID_CLIENT);
}

static void nobody_switches_channels(void)
{
    static const uint32_t commands[] = {NV2080_CTRL_CMD_FIFO_DISABLE_CHANNELS,
                                        0x2080111A, /* the same, for key rotation */
                                        0x20801115, /* the runlist's policy */
                                        0x20801121,
                                        0xA06F0111,
                                        0xA06C0110};

    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++) {
        struct nvos54 control = {.client = ALICES, .object = 1, .command = commands[i]};
        struct verdict verdict = judge_bytes(ALICE, NV_ESC_RM_CONTROL, &control, sizeof control);
        CHECK(verdict.kind == VERDICT_STATUS && verdict.status == NV_ERR_INSUFFICIENT_PERMISSIONS);
    }
    struct nvos54 timeslice = {.client = ALICES, .object = 1, .command = NVA06C_CTRL_CMD_SET_TIMESLICE};
    CHECK(judge_bytes(ALICE, NV_ESC_RM_CONTROL, &timeslice, sizeof timeslice).kind == VERDICT_STATUS);
}

static void nothing_but_events_is_asked_of_a_gpus_own_node(void)
{
    struct nvos64 alloc = {.root = ALICES, .parent = ALICES, .object = 0x77, .class = NV01_MEMORY_LOCAL_USER};
    struct call call = {.slot = ALICE, .file = FILE_GPU, .nr = NV_ESC_RM_ALLOC, .size = sizeof alloc};

    call.args.alloc = alloc;
    CHECK(judge(&call).kind == VERDICT_ERRNO);
    call.args.alloc.class = NV01_EVENT_OS_EVENT;
    CHECK(judge(&call).kind == VERDICT_ALLOC);
    for (uint32_t nr = 0; nr < 256; nr++) { /* and nothing that was looked at is left to the kernel */
        struct call other = {.slot = ALICE, .file = nr & 1 ? FILE_CONTROL : FILE_GPU, .nr = nr, .wrapped = nr & 2};
        CHECK(judge(&other).kind != VERDICT_CONTINUE);
    }
}

static void memory_and_channels_lie_on_the_tenants_own_gpu(void)
{
    struct nvos64 alloc = {.root = ALICES, .parent = 0x60, .object = 0x77, .class = NV01_MEMORY_LOCAL_USER};
    struct nvos32 heap = {.root = ALICES, .parent = 0x60, .function = NVOS32_FUNCTION_ALLOC_SIZE};

    CHECK(judge_bytes(ALICE, NV_ESC_RM_ALLOC, &alloc, sizeof alloc).status == NV_ERR_INVALID_OBJECT_PARENT);
    hold(ALICE, ALICES, ALICES, 0x60, NV01_DEVICE_0, 0);
    CHECK(judge_bytes(ALICE, NV_ESC_RM_ALLOC, &alloc, sizeof alloc).kind == VERDICT_ALLOC);
    CHECK(judge_bytes(ALICE, NV_ESC_RM_VID_HEAP_CONTROL, &heap, sizeof heap).kind == VERDICT_HEAP_ALLOC);
    ledger_find(ALICES, 0x60)->gpu = 1;
    CHECK(judge_bytes(ALICE, NV_ESC_RM_ALLOC, &alloc, sizeof alloc).status == NV_ERR_INVALID_OBJECT_PARENT);
    CHECK(judge_bytes(ALICE, NV_ESC_RM_VID_HEAP_CONTROL, &heap, sizeof heap).status == NV_ERR_INVALID_OBJECT_PARENT);
    alloc.class = HOPPER_CHANNEL_GPFIFO_A;
    CHECK(judge_bytes(ALICE, NV_ESC_RM_ALLOC, &alloc, sizeof alloc).status == NV_ERR_INVALID_OBJECT_PARENT);
    ledger_free(ALICES, 0x60);
}

static void classes_that_take_the_callers_pointers_are_refused(void)
{
    static const uint32_t classes[] = {0x71, 0x81, 0x82, 0x83, 0xC2, 0x90CD};

    for (size_t i = 0; i < sizeof classes / sizeof *classes; i++) {
        struct nvos64 alloc = {.root = ALICES, .parent = ALICES, .object = 0x77, .class = classes[i]};
        CHECK(judge_bytes(ALICE, NV_ESC_RM_ALLOC, &alloc, sizeof alloc).status == NV_ERR_NOT_SUPPORTED);
    }
}

static void a_size_that_the_driver_does_not_know_is_its_own_error(void)
{
    static const uint32_t doors[] = {NV_ESC_RM_ALLOC, NV_ESC_RM_FREE, NV_ESC_RM_CONTROL, NV_ESC_RM_DUP_OBJECT,
                                     NV_ESC_RM_VID_HEAP_CONTROL};
    unsigned char bytes[CALL_ARGS_MAX];

    memset(bytes, 0xA5, sizeof bytes);
    for (size_t i = 0; i < sizeof doors / sizeof *doors; i++)
        for (uint32_t size = 0; size < 400; size++) {
            struct verdict verdict = judge_bytes(ALICE, doors[i], bytes, size);
            bool known = size == 16 || size == 28 || size == 32 || size == 48 || size == sizeof(struct nvos32);
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
    CHECK(tenants[ALICE].page->refusals == 0); /* who asked may find room yet */
    ledger_tell_refusal(ALICE, 103, ALICES, 1);
    ledger_tell_refusal(ALICE, 103, ALICES, UINT64_MAX);
    CHECK(tenants[ALICE].page->refusals == 2 && tenants[ALICE].page->refused_pid == 103);
    ledger_free(ALICES, 0x30);
    CHECK(tenants[ALICE].page->memory_used == 0);
    CHECK(ledger_find(ALICES, 0x31) == NULL);
    hold(ALICE, ALICES, ALICES, 0x40, NV01_MEMORY_LOCAL_USER, 1 << 20);
    ledger_free(ALICES, ALICES);
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

static void memory_with_several_names_counts_once_until_the_last_is_gone(void)
{
    enum { OTHER = 0xC1D00003 };
    struct ledger_object *twin;

    CHECK(ledger_claim_root(ALICE, 103, ALICES) && ledger_claim_root(ALICE, 104, OTHER));
    hold(ALICE, ALICES, ALICES, 0x70, NV01_MEMORY_LOCAL_USER, 1 << 20);
    for (uint32_t handle = 0x71; handle < 0x74; handle++) {
        CHECK(ledger_reserve(ALICE, 104, OTHER, OTHER, handle, NV01_MEMORY_LOCAL_USER, 0, &twin) == RESERVE_OK);
        ledger_join_twins(twin, ledger_find(ALICES, 0x70));
    }
    CHECK(tenants[ALICE].used == 1 << 20);
    ledger_free(OTHER, 0x72);
    CHECK(tenants[ALICE].used == 1 << 20);
    ledger_free(ALICES, ALICES); /* its maker goes: the others carry it */
    CHECK(tenants[ALICE].used == 1 << 20 && tenants[ALICE].page->memory_used == 1 << 20);
    ledger_free(OTHER, 0x71);
    CHECK(tenants[ALICE].used == 1 << 20);
    ledger_free(OTHER, 0x73);
    CHECK(tenants[ALICE].used == 0);
    ledger_free(OTHER, OTHER);
}

static void managed_memory_shares_the_quota_or_overflows_as_far_as_it_may(void)
{
    const uint64_t gib = 1 << 30;
    struct quota wide = {gib, 25000, VGPU_POLICY_HARD, 250};

    CHECK(ledger_claim_root(ALICE, 103, ALICES));
    hold(ALICE, ALICES, ALICES, 0x90, NV01_MEMORY_LOCAL_USER, 1 << 29);
    CHECK(!ledger_set_managed(ALICE, 103, gib / 2 + 1) && ledger_set_managed(ALICE, 103, gib / 2));
    CHECK(tenants[ALICE].used == gib && tenants[ALICE].managed == gib / 2);
    CHECK(ledger_set_managed(ALICE, 103, gib / 4) && ledger_set_managed(ALICE, 104, gib / 4));
    CHECK(!ledger_set_managed(ALICE, 104, UINT64_MAX) && tenants[ALICE].managed == gib / 2);
    CHECK(ledger_set_tenant(ALICE, "t", 0, &wide, -1));
    CHECK(!ledger_set_managed(ALICE, 104, gib + gib / 2 + gib / 4 + 1));
    CHECK(ledger_set_managed(ALICE, 104, gib + gib / 2 + gib / 4));
    CHECK(tenants[ALICE].used == 2 * gib + gib / 2);
    CHECK(ledger_set_managed(ALICE, 103, 0));
    hold(ALICE, ALICES, ALICES, 0x91, NV01_MEMORY_LOCAL_USER, gib / 4); /* its own half, of what is left in all */
    CHECK(ledger_set_managed(BOB, 104, 1 << 20)); /* ALICE's 104 ended, and the number came round */
    CHECK(tenants[ALICE].managed == 0 && tenants[BOB].managed == 1 << 20);
    ledger_set_managed(BOB, 104, 0);
    ledger_free(ALICES, ALICES);
    CHECK(tenants[ALICE].used == 0);
    make_test_tenant(ALICE, gib);
}

static void what_the_driver_rounds_up_past_the_quota_goes_again(void)
{
    struct ledger_object *object;

    CHECK(ledger_claim_root(ALICE, 103, ALICES));
    CHECK(ledger_reserve(ALICE, 103, ALICES, ALICES, 0x80, NV01_MEMORY_LOCAL_USER, (1 << 30) - 1, &object) ==
          RESERVE_OK);
    CHECK(!ledger_commit(object, (1 << 30) + (2 << 20)));
    ledger_cancel(object);
    CHECK(tenants[ALICE].used == 0);
}

static void a_tree_of_many_is_freed_at_once(void)
{
    enum { MANY = 50000 };

    hold(ALICE, ALICES, ALICES, 0x90, NV01_DEVICE_0, 0);
    for (uint32_t i = 0; i < MANY; i++)
        hold(ALICE, ALICES, 0x90, 0x1000 + i, NV01_MEMORY_LOCAL_USER, 4096);
    CHECK(tenants[ALICE].used == MANY * 4096ull);
    ledger_free(ALICES, 0x90);
    CHECK(tenants[ALICE].used == 0 && !ledger_find(ALICES, 0x1000 + MANY / 2));
}

void test_judge(void)
{
    set_up();
    CHECK(ledger_claim_root(ALICE, 103, ALICES));
    CHECK(ledger_claim_root(BOB, 104, BOBS));
    hold(BOB, BOBS, BOBS, 0x20, NV01_DEVICE_0, 0);
    a_client_that_nobody_proved_is_refused();
    a_client_stays_its_makers();
    an_object_is_not_its_own_parent();
    another_devices_ioctl_goes_on_only_with_a_size_that_the_driver_does_not_take();
    clients_alone_are_made_without_parameters();
    a_neighbours_client_is_out_of_reach();
    nobody_switches_channels();
    nothing_but_events_is_asked_of_a_gpus_own_node();
    memory_and_channels_lie_on_the_tenants_own_gpu();
    classes_that_take_the_callers_pointers_are_refused();
    a_size_that_the_driver_does_not_know_is_its_own_error();
    the_quota_is_exact_and_freeing_a_parent_frees_its_children();
    what_a_tenant_writes_on_its_page_lifts_nothing();
    ledger_free(ALICES, ALICES);
    memory_with_several_names_counts_once_until_the_last_is_gone();
    managed_memory_shares_the_quota_or_overflows_as_far_as_it_may();
    what_the_driver_rounds_up_past_the_quota_goes_again();
    a_tree_of_many_is_freed_at_once();
    close_test_ledger();
}
