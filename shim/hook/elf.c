/*
 * Nothing here calls a function of another library: a sanitizer's runtime looks its own functions up by dlsym, and so
 * through here, before any of them can be called.
 */
#define _GNU_SOURCE
#include "elf.h"

#include <link.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What of an object's dynamic section a look-up needs. */
struct tables {
    ElfW(Addr) base;
    const ElfW(Sym) * symbols;
    const char *strings;
    const uint32_t *hash; /* DT_GNU_HASH */
};

/* Some C libraries leave these addresses as they are in the file. */
static const void *relocated(ElfW(Addr) base, ElfW(Addr) address)
{
    return (const void *)(address < base ? base + address : address);
}

static struct tables tables_of(ElfW(Addr) base, const ElfW(Dyn) * entry)
{
    struct tables tables = {.base = base};

    for (; entry && entry->d_tag != DT_NULL; entry++) {
        const void *at = relocated(base, entry->d_un.d_ptr);
        if (entry->d_tag == DT_SYMTAB)
            tables.symbols = at;
        else if (entry->d_tag == DT_STRTAB)
            tables.strings = at;
        else if (entry->d_tag == DT_GNU_HASH)
            tables.hash = at;
    }
    return tables;
}

static bool is_same(const char *a, const char *b)
{
    while (*a && *a == *b)
        a++, b++;
    return *a == *b;
}

static uint32_t gnu_hash(const char *name)
{
    uint32_t hash = 5381;
    for (; *name; name++)
        hash = hash * 33 + (unsigned char)*name;
    return hash;
}

/* The table: counts of buckets, first symbol, filter words, shift; filter; buckets; chains, whose last has bit 0. */
static void *look_up(const struct tables *tables, const char *name)
{
    if (!tables->symbols || !tables->strings || !tables->hash)
        return NULL;
    uint32_t buckets_count = tables->hash[0], first = tables->hash[1], words = tables->hash[2];
    const uint32_t *buckets = tables->hash + 4 + words * (sizeof(ElfW(Addr)) / sizeof(uint32_t));
    const uint32_t *chains = buckets + buckets_count;
    uint32_t wanted = gnu_hash(name), i = buckets_count ? buckets[wanted % buckets_count] : 0;

    for (; i >= first && i; i++) {
        const ElfW(Sym) *symbol = &tables->symbols[i];
        if ((chains[i - first] | 1) == (wanted | 1) && symbol->st_shndx != SHN_UNDEF &&
            is_same(tables->strings + symbol->st_name, name))
            return (void *)(tables->base + symbol->st_value);
        if (chains[i - first] & 1)
            break;
    }
    return NULL;
}

void *object_symbol(const struct link_map *object, const char *symbol)
{
    struct tables tables = tables_of(object->l_addr, object->l_ld);
    return look_up(&tables, symbol);
}

/* libc.so.6, libdl.so.2 (before glibc 2.34), wherever they are. */
static bool is_libc(const char *path)
{
    const char *name = path;

    for (; *path; path++)
        if (*path == '/')
            name = path + 1;
    return name[0] == 'l' && name[1] == 'i' && name[2] == 'b' &&
           ((name[3] == 'c' && name[4] == '.') || (name[3] == 'd' && name[4] == 'l' && name[5] == '.'));
}

void *libc_symbol(const char *symbol)
{
    void *found = NULL;

    for (const struct link_map *object = _r_debug.r_map; object && !found; object = object->l_next)
        if (is_libc(object->l_name))
            found = object_symbol(object, symbol);
    return found;
}
