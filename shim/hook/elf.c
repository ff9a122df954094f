#define _GNU_SOURCE
#include "elf.h"

#include <link.h>
#include <stdint.h>
#include <string.h>

/* What of an object's dynamic section a look-up needs. */
struct tables {
    ElfW(Addr) base;
    const ElfW(Sym) * symbols;
    const char *strings;
    const uint32_t *hash; /* DT_GNU_HASH */
};

struct search {
    const char *symbol;
    void *found;
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
            strcmp(tables->strings + symbol->st_name, name) == 0)
            return (void *)(tables->base + symbol->st_value);
        if (chains[i - first] & 1)
            break;
    }
    return NULL;
}

static int look_in(struct dl_phdr_info *object, size_t size, void *data)
{
    struct search *search = data;
    const char *name = object->dlpi_name ? strrchr(object->dlpi_name, '/') : NULL;

    (void)size;
    if (!name || (strncmp(name, "/libc.so", 8) != 0 && strncmp(name, "/libdl.so", 9) != 0))
        return 0;
    for (int i = 0; i < object->dlpi_phnum; i++) {
        const ElfW(Phdr) *header = &object->dlpi_phdr[i];
        if (header->p_type != PT_DYNAMIC)
            continue;
        struct tables tables = tables_of(object->dlpi_addr, (const ElfW(Dyn) *)(object->dlpi_addr + header->p_vaddr));
        search->found = look_up(&tables, search->symbol);
    }
    return search->found != NULL;
}

void *libc_symbol(const char *symbol)
{
    struct search search = {.symbol = symbol};

    dl_iterate_phdr(look_in, &search);
    return search.found;
}

void *object_symbol(const struct link_map *object, const char *symbol)
{
    struct tables tables = tables_of(object->l_addr, object->l_ld);
    return look_up(&tables, symbol);
}
