/* What a tenant's slice page says: to its shim, and to the daemon. Under ledger_lock(); without a page nothing is said.
 */
#ifndef VGPU_GUARD_PUBLISH_H
#define VGPU_GUARD_PUBLISH_H

#include "ledger.h"

bool publish_open(struct tenant *tenant, int fd); /* in place of a page that it has; false: it can't be mapped */
void publish_close(struct tenant *tenant);
void publish_quota(const struct tenant *tenant);
void publish_anew(const struct tenant *tenant); /* its bytes, and no processes yet */
/* An object came (sign 1) or went (sign -1): the tenant's bytes as they are now, and those of its process. */
void publish_change(const struct tenant *tenant, const struct ledger_object *object, int sign);
void publish_refusal(const struct tenant *tenant, pid_t pid, uint64_t bytes, uint64_t room);
void publish_tier(const struct tenant *tenant, uint32_t tier);
void publish_active(const struct tenant *tenant, pid_t pid); /* pid 0: every process */
void publish_on(const struct tenant *tenant, bool on, uint64_t on_ns);

#endif
