#ifndef VGPU_HOOK_ELF_H
#define VGPU_HOOK_ELF_H

#include <link.h>

/* A function of the C library, found without asking the dynamic linker: the shim stands in for its dlsym. NULL: none.
 */
void *libc_symbol(const char *symbol);
/* What one object that is loaded exports under a name; NULL: nothing. */
void *object_symbol(const struct link_map *object, const char *symbol);

#endif
