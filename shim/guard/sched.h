/* Who is on the GPU when. One thread a GPU switches tenants' channels; docs/scheduling.md explains the policy. */
#ifndef VGPU_GUARD_SCHED_H
#define VGPU_GUARD_SCHED_H

void sched_start(void);
void sched_wake(void); /* channels, quotas or tenants changed */
void sched_stop(void); /* put every channel back on and end the threads */

#endif
