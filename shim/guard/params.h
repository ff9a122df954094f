/*
 * What calls point at: which of the driver's parameter structs hold pointers or descriptors, and which calls a tenant
 * may not make at all. Facts as tables; source: open-gpu-kernel-modules r580, ctrl/ctrl*.h and class/cl*.h (every
 * struct with an NvP64 field), rmapi/embedded_param_copy.c, rmapi_deprecated_control.c.
 */
#ifndef VGPU_GUARD_PARAMS_H
#define VGPU_GUARD_PARAMS_H

#include <stdbool.h>
#include <stdint.h>

#include "rm_abi.h"

#define PARAMS_MAX (1u << 20)  /* the driver's own limit, RMAPI_PARAM_COPY_MAX_PARAMS_SIZE */
#define CLASS_PARAMS_MAX 4096u /* no class that a tenant may allocate has larger ones */
#define PARAM_POINTERS_MAX 3

enum param_count {
    COUNT_PLAIN,  /* so many elements as the field says */
    COUNT_SQUARE, /* its square */
    COUNT_NONE,   /* nobody reads it: handed over as NULL */
};

struct param_pointers {
    uint32_t command;
    uint16_t count_offset, element, pointer_offsets[PARAM_POINTERS_MAX]; /* pointer offset 0: none */
    enum param_count count;
};
/* NULL: nothing in this command's struct points anywhere. */
const struct param_pointers *params_pointers(uint32_t command);

/* Commands whose struct holds a descriptor of the caller's, an i32: where. */
enum param_file { FILE_ASKED, FILE_EXPORTS, FILE_IMPORTS };
struct param_descriptor {
    uint32_t command;
    uint16_t size, offset; /* of the struct; in it */
    enum param_file use;
};
const struct param_descriptor *params_descriptor(uint32_t command);

/* What goes through a file: handles, in places counted from `index`. */
struct carried {
    uint32_t parent, count, index;
    uint32_t handles[NV0000_EXPORT_OBJECTS_MAX];
};

/* False: the command carries nothing, or more than there can be. `params` is as long as the command's struct. */
bool params_carried(uint32_t command, const void *params, struct carried *out);

/* Commands that reach beyond the tenant, lift its limits, or hold pointers that the guard does not know to follow. */
bool params_command_refused(uint32_t command);
/* Classes that take pointers of the caller's address space, or belong to the kernel and to administrators. */
bool params_class_refused(uint32_t class);

#endif
