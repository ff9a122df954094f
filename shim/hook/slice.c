#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "hook.h"

static const struct vgpu_slice_page *page;

const char *slice_directory(void)
{
    static const char *directory;
    if (!directory) {
        const char *value = getenv(VGPU_ENV_DIR);
        directory = value ? value : "";
    }
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

bool slice_read(struct slice *out)
{
    const struct vgpu_slice_page *now = __atomic_load_n(&page, __ATOMIC_ACQUIRE);

    if (!now) { /* two threads may both map it; one mapping more does no harm */
        now = map_page();
        if (!now)
            return false;
        __atomic_store_n(&page, now, __ATOMIC_RELEASE);
    }
    /* A writer killed in mid-write leaves the sequence odd until its successor comes: then take what is there. */
    for (int attempt = 0; attempt < 1000; attempt++) {
        uint32_t before = __atomic_load_n(&now->sequence, __ATOMIC_ACQUIRE);
        out->quota = __atomic_load_n(&now->memory_quota, __ATOMIC_RELAXED);
        out->used = __atomic_load_n(&now->memory_used, __ATOMIC_RELAXED);
        out->tier = __atomic_load_n(&now->tier, __ATOMIC_RELAXED);
        __atomic_thread_fence(__ATOMIC_ACQUIRE);
        if (!(before & 1) && before == __atomic_load_n(&now->sequence, __ATOMIC_RELAXED))
            break;
    }
    memcpy(out->gpu_uuid, now->gpu_uuid, sizeof out->gpu_uuid);
    out->gpu_uuid[sizeof out->gpu_uuid - 1] = 0;
    return true;
}
