/* Answering one call of a tenant's: copied, judged, and done or refused. */
#ifndef VGPU_GUARD_ANSWER_H
#define VGPU_GUARD_ANSWER_H

#include "crew.h"
#include "perform.h"

/* The notification in job->inflight, that came by `listener`. */
void answer_call(struct crew *crew, struct job *job, int listener);
/* What a predecessor, killed in mid-call, left unanswered there. */
void answer_leftovers(struct crew *crew, struct job *job, int listener);

#endif
