/* Several clients on one open file of the driver, as OpenGL has them, and files that are closed without a word. */
#define _GNU_SOURCE
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "check.h"
#include "fake_driver.h"
#include "scene.h"

enum { BOB = 6, FIRST = 0xC1D00200, DEVICE = 0x100 };

static struct backend without_word; /* a driver that does not say when a client ends */

static uint32_t ask(uint32_t root)
{
    struct nvos54 call = {.client = root, .object = root, .command = 0x0214};

    CHECK(fake_call(BOB, NV_ESC_RM_CONTROL, sizeof call, &call) == 0);
    return call.status;
}

static void settle_in(int place, uint32_t root, int fd)
{
    fake.homes[place].root = root;
    fake.homes[place].fd = fake.fd = fd;
    ask(root);
}

static void clients_of_one_file_live_and_end_with_it(void)
{
    int one = eventfd(0, 0), other = eventfd(0, 0);

    settle_in(0, FIRST, one);
    settle_in(1, FIRST + 1, one);
    settle_in(2, FIRST + 2, other);
    for (uint32_t i = 0; i < 3; i++)
        CHECK(ledger_root_owner(FIRST + i) == BOB);
    fake_sweep(BOB);
    for (uint32_t i = 0; i < 3; i++)
        CHECK(ledger_root_owner(FIRST + i) == BOB);
    close(one);
    fake_sweep(BOB);
    CHECK(ledger_root_owner(FIRST) == -1 && ledger_root_owner(FIRST + 1) == -1);
    CHECK(ledger_root_owner(FIRST + 2) == BOB);
    close(other);
    fake_sweep(BOB);
    CHECK(ledger_root_owner(FIRST + 2) == -1);
}

static void a_file_outlives_its_first_client(void)
{
    int fd = eventfd(0, 0);
    struct nvos00 gone = {.root = FIRST + 3, .object = FIRST + 3};

    settle_in(3, FIRST + 3, fd);
    settle_in(4, FIRST + 4, fd);
    CHECK(fake_call(BOB, NV_ESC_RM_FREE, sizeof gone, &gone) == 0 && ledger_root_owner(FIRST + 3) == -1);
    fake.homes[3].fd = -1;
    settle_in(5, FIRST + 5, fd); /* known by its neighbour */
    gone = (struct nvos00){.root = FIRST + 4, .object = FIRST + 4};
    CHECK(fake_call(BOB, NV_ESC_RM_FREE, sizeof gone, &gone) == 0);
    gone = (struct nvos00){.root = FIRST + 5, .object = FIRST + 5};
    CHECK(fake_call(BOB, NV_ESC_RM_FREE, sizeof gone, &gone) == 0);
    fake.homes[4].fd = fake.homes[5].fd = -1;
    settle_in(6, FIRST + 6, fd); /* known by nobody, on a file that is */
    fake_sweep(BOB);
    CHECK(ledger_root_owner(FIRST + 6) == BOB);
    close(fd);
    fake_sweep(BOB);
    CHECK(ledger_root_owner(FIRST + 6) == -1);
}

static uint32_t take(uint32_t root, uint32_t handle, uint64_t bytes)
{
    struct nv0080_alloc_params device = {0};
    struct nv_memory_allocation_params memory = {.size = bytes};
    struct nvos64 call = {
        .root = root, .parent = root, .object = DEVICE, .class = NV01_DEVICE_0, .params = (uintptr_t)&device};

    fake_call(BOB, NV_ESC_RM_ALLOC, sizeof call, &call);
    call = (struct nvos64){.root = root,
                           .parent = DEVICE,
                           .object = handle,
                           .class = NV01_MEMORY_LOCAL_USER,
                           .params = (uintptr_t)&memory};
    CHECK(fake_call(BOB, NV_ESC_RM_ALLOC, sizeof call, &call) == 0);
    return call.status;
}

static void a_number_that_is_made_again_is_another_client(void)
{
    const uint32_t again = FIRST + 7;
    int one = eventfd(0, 0), kept = eventfd(0, 0);

    fake.homes[0].fd = fake.homes[1].fd = fake.homes[2].fd = -1;
    fake.fd = one;
    CHECK(fake_admit(BOB, NV_ESC_RM_ALLOC_OBJECT));
    settle_in(7, again, one);
    CHECK(take(again, 0x500, 4096) == NV_OK && tenants[BOB].used == 4096);
    fake.fd = kept;
    CHECK(fake_admit(BOB, NV_ESC_RM_ALLOC_OBJECT));
    settle_in(0, FIRST + 8, kept); /* a file with a number of its own */
    close(one);
    CHECK(fake_admit(BOB, NV_ESC_RM_ALLOC_OBJECT)); /* and on it the old number, named by the tenant */
    settle_in(7, again, kept);
    CHECK(take(again, 0x501, 8192) == NV_OK);
    fake_sweep(BOB);
    CHECK(ledger_root_owner(again) == BOB && tenants[BOB].used == 8192);
    close(kept);
    fake_sweep(BOB);
    CHECK(ledger_root_owner(again) == -1 && tenants[BOB].used == 0);
}

/* A guard that was restarted knows its predecessor's clients, and not their files. */
static void a_predecessors_file_is_not_fresh(void)
{
    int fd = eventfd(0, 0);

    fake.homes[0].root = FIRST + 9;
    fake.homes[0].fd = fake.fd = fd;
    CHECK(ledger_claim_root(BOB, getpid(), FIRST + 9));
    CHECK(!fake_admit(BOB, NV_ESC_RM_ALLOC));
    CHECK(fake_admit(BOB, NV_ESC_RM_ALLOC_OBJECT));
    ledger_lock();
    ledger_free(FIRST + 9, FIRST + 9);
    ledger_unlock();
    close(fd);
    fake_sweep(BOB);
}

/* By the door that also gives memory the kernel makes a client only where no other could be given any. */
static void the_common_door_is_for_fresh_files(void)
{
    int fd = eventfd(0, 0), other = eventfd(0, 0);

    fake.fd = fd;
    CHECK(fake_admit(BOB, NV_ESC_RM_ALLOC));
    CHECK(!fake_admit(BOB, NV_ESC_RM_ALLOC));        /* the first may be there by now */
    CHECK(!fake_admit(BOB, NV_ESC_RM_ALLOC_OBJECT)); /* or wait in the kernel, to be another call */
    fake.fd = other;
    CHECK(fake_admit(BOB, NV_ESC_RM_ALLOC_OBJECT));
    CHECK(!fake_admit(BOB, NV_ESC_RM_ALLOC));
    close(fd);
    close(other);
    fake_sweep(BOB);
}

void test_clients(void)
{
    open_test_ledger();
    make_test_tenant(BOB, 1 << 20);
    fake_open();
    without_word = fake_backend;
    without_word.client_lives = NULL;
    backend = &without_word;
    clients_of_one_file_live_and_end_with_it();
    a_file_outlives_its_first_client();
    a_number_that_is_made_again_is_another_client();
    the_common_door_is_for_fresh_files();
    a_predecessors_file_is_not_fresh();
    fake_close();
    close_test_ledger();
}
