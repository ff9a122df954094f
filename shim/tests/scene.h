/* A ledger and tenants of a test's own. */
#ifndef VGPU_TESTS_SCENE_H
#define VGPU_TESTS_SCENE_H

#include <stdint.h>

void open_test_ledger(void);
void make_test_tenant(int slot, uint64_t memory);
void close_test_ledger(void); /* its tenants with it */

#endif
