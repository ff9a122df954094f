#include "check.h"

#include "backend.h"

const struct backend *backend = &backend_emulated;
int gpu_count = 1;
int failures;

int main(void)
{
    test_audit();
    test_judge();
    test_budget();
    test_clients();
    test_files();
    test_perform();
    test_policy();
    test_ptx();
    test_still();
    test_work();
    printf("%d failed\n", failures);
    return failures != 0;
}
