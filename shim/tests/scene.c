#define _GNU_SOURCE
#include "scene.h"

#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "check.h"
#include "ledger.h"

void open_test_ledger(void)
{
    char path[] = "/tmp/vgpu-ledger-XXXXXX";
    int fd = mkstemp(path);

    CHECK(fd >= 0);
    close(fd);
    ledger_open(path);
    unlink(path);
}

void make_test_tenant(int slot, uint64_t memory)
{
    const struct quota quota = {memory, 25000, VGPU_POLICY_HARD, 100};
    int fd = memfd_create("page", MFD_CLOEXEC);

    CHECK(fd >= 0 && ftruncate(fd, sizeof(struct vgpu_slice_page)) == 0);
    CHECK(ledger_set_tenant(slot, "t", 0, &quota, fd));
    close(fd);
}

void close_test_ledger(void)
{
    for (int slot = 0; slot < LEDGER_TENANTS; slot++)
        if (tenants[slot].live)
            ledger_remove_tenant(slot);
    ledger_close();
}
