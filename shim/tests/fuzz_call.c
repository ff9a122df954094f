/*
 * Fuzzing of what a tenant can send: calls with any arguments, pointers and parameters, judged and performed.
 *
 * An input is records of 5 bytes and a body: escape, size of the struct (2), length of the body (2). The body is laid
 * at the end of a mapped page, with nothing behind it; addresses in it that are small count from there. Invariants:
 * the sanitizers are silent, and the tenant's bytes never exceed its quota. With clang it is a libFuzzer target;
 * without, replay_corpus.c runs the corpus and mutations of it.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "fake_driver.h"
#include "scene.h"

enum { ALICE = 5, PAGE = 4096, RECORD = 5 };
#define QUOTA (64ull << 20)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static unsigned char *arena; /* two pages, the second not there; shared with the tenant */
static pid_t tenant;         /* a process of its own, for what is written to wild addresses is written */

/* Small numbers at 8-byte steps become addresses in the arena, so that pointers hit. */
static void point_into_arena(unsigned char *body, size_t length)
{
    for (size_t i = 0; i + 8 <= length; i += 8) {
        uint64_t value;
        memcpy(&value, body + i, sizeof value);
        if (value >= 0xF000 && value < 0xF000 + 2 * PAGE) {
            value = (uintptr_t)arena + (value - 0xF000);
            memcpy(body + i, &value, sizeof value);
        }
    }
}

static void set_up(void)
{
    open_test_ledger();
    fake_open();
    arena = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (arena == MAP_FAILED || munmap(arena + PAGE, PAGE) < 0)
        abort();
    tenant = fork();
    if (tenant == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (;;)
            pause();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!arena)
        set_up();
    make_test_tenant(ALICE, QUOTA);
    fake = (struct fake_driver){.round_to = size ? data[0] * 4096ull : 0, .write = 1, .tenant = tenant};
    while (size >= RECORD) {
        uint32_t nr = data[0];
        uint16_t struct_size, length;
        memcpy(&struct_size, data + 1, sizeof struct_size);
        memcpy(&length, data + 3, sizeof length);
        data += RECORD;
        size -= RECORD;
        if (length > size)
            length = (uint16_t)size;
        if (length > PAGE)
            length = PAGE;
        unsigned char *at = arena + PAGE - length;
        memcpy(at, data, length);
        point_into_arena(at, length);
        fake.status = length & 1 ? NV_OK : struct_size & 0x4000 ? NV_ERR_NO_MEMORY : NV_OK;
        fake_call(ALICE, nr, struct_size & 0x3FFF, at);
        if (tenants[ALICE].used > QUOTA)
            abort();
        data += length;
        size -= length;
    }
    ledger_remove_tenant(ALICE);
    return 0;
}
