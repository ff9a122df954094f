/*
 * The smallest GPU program: allocates and frees 2 MiB on the emulated GPU now and then, with bare driver calls.
 *
 * small_client SECONDS PAUSE_MS     {"median_us", "worst_us", "calls"} of an allocation with its freeing
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "rm_abi.h"

enum { DEVICE = 0x100, MEMORY = 0x200, MOST = 100000 };

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static uint32_t make(int fd, uint32_t root, uint32_t parent, uint32_t object, uint32_t class, void *params)
{
    struct nvos64 call = {
        .root = root, .parent = parent, .object = object, .class = class, .params = (uintptr_t)params};

    if (ioctl(fd, NV_REQUEST(NV_ESC_RM_ALLOC, struct nvos64), &call) < 0 || call.status != NV_OK) {
        fprintf(stderr, "small_client: class 0x%x: status 0x%x\n", class, call.status);
        exit(1);
    }
    return call.object;
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

int main(int argc, char **argv)
{
    static double took[MOST];
    struct nv0080_alloc_params device = {0};
    char path[512];
    int count = 0;

    if (argc < 3)
        return 2;
    snprintf(path, sizeof path, "%s/gpu0", getenv("VGPU_EMULATED_DIR"));
    int fd = open(path, O_RDWR | O_CLOEXEC);
    uint32_t root = make(fd, 0, 0, 0, NV01_ROOT_CLIENT, NULL);
    make(fd, root, root, DEVICE, NV01_DEVICE_0, &device);
    for (double end = now() + atof(argv[1]); now() < end && count < MOST; usleep((useconds_t)(atof(argv[2]) * 1e3))) {
        struct nv_memory_allocation_params memory = {.size = 2 << 20};
        struct nvos00 gone = {.root = root, .object = MEMORY};
        double began = now();
        make(fd, root, DEVICE, MEMORY, NV01_MEMORY_LOCAL_USER, &memory);
        ioctl(fd, NV_REQUEST(NV_ESC_RM_FREE, struct nvos00), &gone);
        took[count++] = (now() - began) * 1e6;
    }
    qsort(took, (size_t)count, sizeof *took, by_size);
    printf("{\"median_us\": %.2f, \"worst_us\": %.2f, \"calls\": %d}\n", took[count / 2], took[count - 1], count);
    return 0;
}
