/*
 * A tenant's clients of the driver: whose each is, and on which of its open files. The driver ties a client to the file
 * that it was made on and ends it with that file; one file may hold several (OpenGL's does).
 */
#ifndef VGPU_GUARD_CLIENTS_H
#define VGPU_GUARD_CLIENTS_H

#include "perform.h"

#define CLIENTS_MAX FILES_MAX /* of one tenant */

/* May a client be made on this file now? */
bool clients_admit(struct job *job, const struct call *call);
/* The client that the call names proves itself on the call's file, if it is not known yet. False: ask again. */
bool clients_claim(struct job *job, const struct call *call);
/* Make one where the guard does so itself (backend->performs_roots). 0 or the errno that the tenant gets. */
int clients_perform_root(struct job *job, const struct call *call);

#endif
