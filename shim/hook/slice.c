#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "hook.h"

#define ATTEMPTS 1000 /* then what is there is taken */

static const struct vgpu_slice_page *page;

/* A copy, made before the program runs: one that sets its title writes over its environment. */
static char directory[256];

static void remember_directory(void)
{
    const char *value = getenv(VGPU_ENV_DIR);
    if (value && strlen(value) < sizeof directory)
        strcpy(directory, value);
}

__attribute__((constructor)) static void begin(void)
{
    slice_directory();
    tier_is_shim();
}

const char *slice_directory(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;

    pthread_once(&once, remember_directory);
    return *directory ? directory : NULL;
}

static const struct vgpu_slice_page *map_page(void)
{
    char path[512];
    struct stat info;

    if (!slice_directory() ||
        snprintf(path, sizeof path, "%s/%s", slice_directory(), VGPU_PAGE_FILE) >= (int)sizeof path)
        return NULL;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return NULL;
    void *map = MAP_FAILED;
    if (fstat(fd, &info) == 0 && info.st_size >= (off_t)sizeof *page)
        map = mmap(NULL, sizeof *page, PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    if (map == MAP_FAILED)
        return NULL;
    const struct vgpu_slice_page *candidate = map;
    if (candidate->magic == VGPU_PAGE_MAGIC && candidate->version == VGPU_PAGE_VERSION)
        return candidate;
    munmap(map, sizeof *page);
    return NULL;
}

static const struct vgpu_slice_page *mapped_page(void)
{
    const struct vgpu_slice_page *now = __atomic_load_n(&page, __ATOMIC_ACQUIRE);

    if (!now) { /* two threads may both map it; one mapping more does no harm */
        now = map_page();
        if (now)
            __atomic_store_n(&page, now, __ATOMIC_RELEASE);
    }
    return now;
}

/* Was nothing written since `before` was read? A writer killed in mid-write leaves it odd until its successor comes. */
static bool is_consistent(const struct vgpu_slice_page *now, uint32_t before)
{
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    return !(before & 1) && before == __atomic_load_n(&now->sequence, __ATOMIC_RELAXED);
}

uint32_t slice_core_now(void)
{
    const struct vgpu_slice_page *now = mapped_page();
    uint32_t core = now ? __atomic_load_n(&now->core_now, __ATOMIC_RELAXED) : 0;

    if (!core && now) /* the daemon has not said yet */
        core = __atomic_load_n(&now->core_millipercent, __ATOMIC_RELAXED);
    return now ? core : 100000;
}

bool slice_read(struct slice *out)
{
    const struct vgpu_slice_page *now = mapped_page();

    if (!now)
        return false;
    for (int attempt = 0; attempt < ATTEMPTS; attempt++) {
        uint32_t before = __atomic_load_n(&now->sequence, __ATOMIC_ACQUIRE);
        out->quota = __atomic_load_n(&now->memory_quota, __ATOMIC_RELAXED);
        out->limit = __atomic_load_n(&now->memory_limit, __ATOMIC_RELAXED);
        out->free = __atomic_load_n(&now->memory_free, __ATOMIC_RELAXED);
        out->core_millipercent = __atomic_load_n(&now->core_millipercent, __ATOMIC_RELAXED);
        out->sampled_at_ns = __atomic_load_n(&now->sampled_at_ns, __ATOMIC_RELAXED);
        if (is_consistent(now, before))
            break;
    }
    memcpy(out->gpu_uuid, now->gpu_uuid, sizeof out->gpu_uuid);
    out->gpu_uuid[sizeof out->gpu_uuid - 1] = 0;
    account_correct(out);
    return true;
}

unsigned slice_processes(struct vgpu_process_row *out, unsigned room)
{
    const struct vgpu_slice_page *now = mapped_page();
    unsigned count = 0;

    for (int attempt = 0; now && attempt < ATTEMPTS; attempt++) {
        uint32_t before = __atomic_load_n(&now->sequence, __ATOMIC_ACQUIRE);
        uint32_t rows = __atomic_load_n(&now->process_rows, __ATOMIC_RELAXED);
        count = 0;
        for (uint32_t i = 0; i < rows && i < VGPU_PAGE_PROCESSES; i++) {
            struct vgpu_process_row row;
            memcpy(&row, &now->processes[i], sizeof row);
            if (row.pid && count++ < room)
                out[count - 1] = row;
        }
        if (is_consistent(now, before))
            break;
    }
    return count;
}
