/* When the driver's account and the ledger's are said to differ. */
#define _GNU_SOURCE
#include <unistd.h>

#include "audit.h"
#include "check.h"
#include "fake_driver.h"
#include "scene.h"

enum { ALICE = 5, ROOT = 0xC1D00100 };
#define MIB (1ull << 20)
#define SECOND 1000000000ull

void test_audit(void)
{
    struct audit audit = {0};
    struct ledger_object *object;
    uint64_t now = 100 * SECOND;

    open_test_ledger();
    fake_open();
    make_test_tenant(ALICE, 1024 * MIB);
    const pid_t self = getpid(), nobody = 0;
    fake.witnessed = 4096 * MIB;
    CHECK(audit_tenant(&audit, ALICE, false, &self, 1, now) == 0); /* no client, so nothing of its */
    ledger_lock();
    CHECK(ledger_claim_root(ALICE, getpid(), ROOT));
    CHECK(ledger_reserve(ALICE, getpid(), ROOT, ROOT, 7, NV01_MEMORY_LOCAL_USER, 512 * MIB, &object) == RESERVE_OK);
    ledger_unlock();
    fake.witnessed = 512 * MIB;
    for (int i = 0; i < 9; i++)
        CHECK(audit_tenant(&audit, ALICE, false, &self, 1, now += 10 * SECOND) == 0);
    fake.witnessed = 768 * MIB;
    CHECK(audit_tenant(&audit, ALICE, false, &self, 1, now += SECOND) == 0 && audit.found == 0); /* not time yet */
    for (int i = 1; i <= 3; i++) /* what is being taken down is there for a while */
        CHECK(audit_tenant(&audit, ALICE, true, &self, 1, now += SECOND / 3) == 0 && audit.found == i);
    CHECK(audit_tenant(&audit, ALICE, true, &self, 1, now) == 0);
    CHECK(audit_tenant(&audit, ALICE, true, &self, 1, now += SECOND / 3) == 256 * MIB);
    fake.witnessed = 512 * MIB;
    CHECK(audit_tenant(&audit, ALICE, true, &self, 1, now += SECOND) == 0 && audit.found == 0);
    fake.witnessed = 4096 * MIB; /* the maker's number is alive, and nobody of the tenant's has it */
    for (int i = 0; i < 9; i++)
        CHECK(audit_tenant(&audit, ALICE, true, &nobody, 1, now += SECOND) == 0);
    fake_close();
    close_test_ledger();
}
