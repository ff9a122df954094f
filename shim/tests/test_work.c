/* Who has work, as rings and the driver tell it. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <unistd.h>

#include "check.h"
#include "fake_driver.h"
#include "scene.h"
#include "work.h"

enum { ALICE = 5, ROOT = 0xC1D00100, DEVICE = 0x100, FIRST = 0x200 };
#define MIB (1ull << 20)

static int file; /* stands for the process' descriptor of the driver */

static void make_object(uint32_t parent, uint32_t handle, uint32_t class)
{
    struct ledger_object *object;

    ledger_lock();
    CHECK(ledger_reserve(ALICE, getpid(), ROOT, parent, handle, class, 0, &object) == RESERVE_OK);
    object->state = OBJECT_HELD;
    if (NV_CLASS_IS_CHANNEL(class)) {
        ledger_note_ring(object, 0, 0, file);
        ledger_note_scheduled(ROOT, handle);
    }
    ledger_unlock();
}

static void make_channels(uint32_t first, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        make_object(DEVICE, first + i, HOPPER_CHANNEL_GPFIFO_A);
}

static void drop_object(uint32_t handle)
{
    ledger_lock();
    ledger_free(ROOT, handle);
    ledger_unlock();
}

static bool ever_pending(struct work *work)
{
    bool pending = false;

    for (int i = 0; i < 16; i++) /* channels that were never used are looked at in turn */
        pending |= work_is_pending(work, ALICE);
    return pending;
}

static bool ever_idle(struct work *work)
{
    bool idle = false;

    for (int i = 0; i < 8 && !idle; i++) /* so many questions at once and no more */
        idle = work_prove_idle(work, ALICE);
    return idle;
}

static void what_is_handed_in_is_seen_and_what_runs_is_no_idleness(void)
{
    struct work *work = work_open(0);

    make_channels(FIRST, 20);
    work_refresh(work);
    CHECK(work_is_seen(work, ALICE) && fake.rings_open == 20);
    CHECK(ever_pending(work)); /* not known to be done */
    CHECK(ever_idle(work));
    CHECK(!ever_pending(work) && !work_moved(work, ALICE));
    struct fake_channel *used = fake_channel(FIRST + 13);
    used->put = 1;
    CHECK(ever_pending(work) && work_moved(work, ALICE)); /* not fetched yet */
    int questions = fake.questions;
    CHECK(!work_prove_idle(work, ALICE) && fake.questions == questions);
    used->get = 1;
    CHECK(!work_moved(work, ALICE) && !work_prove_idle(work, ALICE)); /* it runs */
    used->done = 1;
    questions = fake.questions;
    CHECK(ever_idle(work) && !ever_pending(work));
    CHECK(fake.questions == questions + 1); /* the others are known to be idle */
    work_close(work);
    CHECK(fake.rings_open == 0);
}

static void channels_come_and_go(void)
{
    struct work *work = work_open(0);

    work_refresh(work);
    CHECK(ever_idle(work));
    drop_object(FIRST + 3);
    drop_object(FIRST + 19);
    make_channels(FIRST + 19, 2); /* one has the number of one that went */
    work_refresh(work);
    CHECK(work_is_seen(work, ALICE) && fake.rings_open == 20);
    CHECK(ever_pending(work)); /* a new one is not known to be idle */
    CHECK(ever_idle(work));
    make_channels(0x1000, 600); /* more than are watched: it counts as awake for good */
    work_refresh(work);
    CHECK(!work_is_seen(work, ALICE) && work_is_pending(work, ALICE) && !work_prove_idle(work, ALICE));
    CHECK(fake.rings_open == 0);
    for (uint32_t i = 0; i < 600; i++)
        drop_object(0x1000 + i);
    work_refresh(work);
    CHECK(work_is_seen(work, ALICE) && fake.rings_open == 20);
    fake.no_rings = true;
    make_channels(0x1000, 1);
    work_refresh(work);
    CHECK(!work_is_seen(work, ALICE) && !work_prove_idle(work, ALICE));
    fake.no_rings = false;
    drop_object(ROOT);
    work_refresh(work);
    CHECK(fake.rings_open == 0);
    work_close(work);
}

void test_work(void)
{
    open_test_ledger();
    fake_open();
    file = open("/dev/null", O_RDWR | O_CLOEXEC);
    make_test_tenant(ALICE, 64 * MIB);
    ledger_lock();
    CHECK(ledger_claim_root(ALICE, getpid(), ROOT));
    ledger_unlock();
    make_object(ROOT, DEVICE, NV01_DEVICE_0);
    what_is_handed_in_is_seen_and_what_runs_is_no_idleness();
    channels_come_and_go();
    close(file);
    fake_close();
    close_test_ledger();
}
