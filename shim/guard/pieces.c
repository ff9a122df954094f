#define _GNU_SOURCE
#include "pieces.h"

#include <string.h>

#include "reach.h"

static uint32_t u32_in(const unsigned char *params, uint32_t offset)
{
    uint32_t value;
    memcpy(&value, params + offset, sizeof value);
    return value;
}

int pieces_copy(pid_t tid, const struct param_pointers *spec, unsigned char *params, uint32_t size, unsigned char *room,
                struct piece pieces[PARAM_POINTERS_MAX])
{
    int count = 0;

    for (int i = 0; i < PARAM_POINTERS_MAX && spec->pointer_offsets[i]; i++) {
        struct piece *piece = &pieces[count];
        uint32_t offset = spec->pointer_offsets[i];
        if (offset + sizeof(uint64_t) > size || spec->count_offset + sizeof(uint32_t) > size)
            return -1;
        memcpy(&piece->address, params + offset, sizeof piece->address);
        if (!piece->address)
            continue;
        uint64_t elements = u32_in(params, spec->count_offset);
        elements = spec->count == COUNT_SQUARE ? elements * elements : elements;
        if (elements > PARAMS_MAX || elements * spec->element > PARAMS_MAX)
            return -1;
        piece->size = spec->count == COUNT_NONE ? 0 : (uint32_t)elements * spec->element;
        piece->offset = offset;
        piece->before = room;
        piece->after = room + PARAMS_MAX;
        room += 2 * (size_t)PARAMS_MAX;
        if (!reach_read(tid, piece->address, piece->before, piece->size))
            return -1;
        memcpy(piece->after, piece->before, piece->size);
        uint64_t copy = spec->count == COUNT_NONE ? 0 : (uintptr_t)piece->after;
        memcpy(params + offset, &copy, sizeof copy);
        count++;
    }
    return count;
}

bool pieces_write(pid_t tid, unsigned char *params, const struct piece *pieces, int count)
{
    bool written = true;

    for (int i = 0; i < count; i++) {
        memcpy(params + pieces[i].offset, &pieces[i].address, sizeof pieces[i].address);
        written &= reach_write_changes(tid, pieces[i].address, pieces[i].before, pieces[i].after, pieces[i].size);
    }
    return written;
}
