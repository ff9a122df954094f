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
        ledger_note_ring(object, parent, 0, file);
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

/* Questions are answered by another thread: the state when none is open any more. */
static enum work_state ask(struct work *work)
{
    enum work_state state = WORK_ASKED;

    for (int i = 0; i < 2000 && state == WORK_ASKED; i++) {
        state = work_ask(work, ALICE);
        usleep(500);
        work_go_on(work);
    }
    return state;
}

static bool see_all(struct work *work)
{
    work_refresh(work);
    for (int i = 0; i < 2000 && !work_is_seen(work, ALICE); i++) {
        work_go_on(work);
        usleep(500);
    }
    return work_is_seen(work, ALICE);
}

static void use(struct fake_channel *channel, uint32_t put) { channel->put = channel->get = channel->done = put; }

static void what_is_handed_in_is_seen_and_what_runs_is_no_idleness(void)
{
    struct work *work = work_open(0);

    make_channels(FIRST, 20);
    CHECK(see_all(work) && fake.rings_open == 20);
    CHECK(ever_pending(work)); /* not known to be done */
    CHECK(ask(work) == WORK_IDLE);
    CHECK(!ever_pending(work) && !work_moved(work, ALICE));
    struct fake_channel *used = fake_channel(FIRST + 13);
    used->put = 1;
    CHECK(ever_pending(work) && work_moved(work, ALICE)); /* not fetched yet */
    int questions = fake.questions;
    CHECK(work_ask(work, ALICE) == WORK_BUSY && fake.questions == questions);
    used->get = 1;
    work_moved(work, ALICE);
    CHECK(!work_moved(work, ALICE) && ask(work) == WORK_BUSY); /* it runs */
    used->done = 1;
    questions = fake.questions;
    CHECK(ask(work) == WORK_IDLE && !ever_pending(work));
    CHECK(fake.questions == questions + 1); /* the others are known to be idle */
    work_close(work);
    CHECK(fake.rings_open == 0);
}

/* What the driver says of one that is off by now is not believed: its kernel may have been stopped. */
static void an_answer_that_comes_late_is_void(void)
{
    struct work *work = work_open(0);

    CHECK(see_all(work) && ask(work) == WORK_IDLE);
    use(fake_channel(FIRST + 13), 5);
    CHECK(work_ask(work, ALICE) == WORK_BUSY && work_ask(work, ALICE) == WORK_ASKED);
    work_leave(work, ALICE);
    usleep(50000);
    work_go_on(work);
    CHECK(ever_pending(work));
    CHECK(ask(work) == WORK_IDLE && !ever_pending(work));
    work_close(work);
}

/* A question that is open when its tenant goes is not the next one's. */
static void an_open_question_of_a_tenant_that_went_blocks_nobody(void)
{
    struct work *work = work_open(0);

    CHECK(see_all(work) && ask(work) == WORK_IDLE);
    work_doubt(work, ALICE);
    CHECK(ever_pending(work) && work_ask(work, ALICE) == WORK_ASKED);
    for (uint32_t i = 0; i < 20; i++)
        drop_object(FIRST + i);
    work_refresh(work);
    CHECK(fake.rings_open == 0);
    make_channels(FIRST, 20);
    CHECK(see_all(work) && ask(work) == WORK_IDLE);
    work_close(work);
}

/* A ring of 4 that is where it was when the channel was idle, with something at work in it. */
static void a_ring_that_came_round_is_not_idle(void)
{
    struct work *work = work_open(0);
    struct fake_channel *used = fake_channel(FIRST + 13);

    CHECK(see_all(work) && ask(work) == WORK_IDLE);
    uint32_t start = used->put;
    for (uint32_t i = 1; i < 4; i++) {
        use(used, (start + i) % 4);
        work_moved(work, ALICE);
    }
    used->put = used->get = start;
    used->done = 77; /* not done */
    work_moved(work, ALICE);
    CHECK(ask(work) == WORK_BUSY);
    used->done = used->put;
    CHECK(ask(work) == WORK_IDLE);
    work_close(work);
}

static void channels_come_and_go(void)
{
    struct work *work = work_open(0);

    CHECK(see_all(work) && ask(work) == WORK_IDLE);
    drop_object(FIRST + 3);
    drop_object(FIRST + 19);
    make_channels(FIRST + 19, 2); /* one has the number of one that went */
    CHECK(see_all(work) && fake.rings_open == 20);
    CHECK(ever_pending(work)); /* a new one is not known to be idle */
    CHECK(ask(work) == WORK_IDLE);
    make_channels(0x1000, 600); /* more than are watched: it counts as awake for good */
    CHECK(!see_all(work) && work_is_pending(work, ALICE) && work_ask(work, ALICE) == WORK_BUSY);
    CHECK(fake.rings_open == 0);
    for (uint32_t i = 0; i < 600; i++)
        drop_object(0x1000 + i);
    CHECK(see_all(work) && fake.rings_open == 20);
    fake.no_rings = true;
    make_object(ROOT, 0x900, NV01_DEVICE_0);
    make_object(0x900, 0x901, HOPPER_CHANNEL_GPFIFO_A); /* in memory of its own */
    CHECK(!see_all(work) && work_ask(work, ALICE) == WORK_BUSY);
    fake.no_rings = false;
    drop_object(ROOT);
    work_refresh(work);
    CHECK(fake.rings_open == 0 && !work_is_pending(work, ALICE)); /* nothing is left that could have work */
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
    an_answer_that_comes_late_is_void();
    an_open_question_of_a_tenant_that_went_blocks_nobody();
    a_ring_that_came_round_is_not_idle();
    channels_come_and_go();
    close(file);
    fake_close();
    close_test_ledger();
}
