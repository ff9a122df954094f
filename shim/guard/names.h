/*
 * Further names of memory that is there already: duplicates, and what is exported to files and imported from them. One
 * piece of memory counts once, until its last name is gone.
 */
#ifndef VGPU_GUARD_NAMES_H
#define VGPU_GUARD_NAMES_H

#include "params.h"
#include "perform.h"

/* NV_ESC_RM_DUP_OBJECT. 0 or errno. */
int names_dup(struct job *job, const struct call *call);
/* A command that names a descriptor: the guard's copy of it stands in. Exports and imports are accounted. */
int names_control(struct job *job, const struct call *call, const struct param_descriptor *spec, struct nvos54 *mine,
                  unsigned char *params);

#endif
