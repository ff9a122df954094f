import { IOwner, IQuota, IRefusal, ISlice, Usage } from './request';

/** What happened between two answers, and a person should hear of. */
export type Incident =
  | { kind: 'refused'; refusal: IRefusal }
  | { kind: 'resized'; before: IQuota; after: IQuota }
  | { kind: 'over'; by: number };

/** Before the first answer it may have happened while the page was loading. */
const NEWS_S = 30;

/** What one asker's incidents have in common. */
export function identity(owner: IOwner): string {
  return `${owner.kind} ${owner.id ?? owner.name}`;
}

/** Compare two answers. `known`: the last one that told of a slice, null when there was none. */
export function compare(known: ISlice | null, after: Usage): Incident[] {
  if (after.kind !== 'slice') {
    return [];
  }
  const old = new Set(known?.refusals.recent.map(each => each.first));
  const since = known ? 0 : after.now - NEWS_S;
  const incidents: Incident[] = after.refusals.recent
    .filter(each => each.first > since && !old.has(each.first))
    .map(refusal => ({ kind: 'refused', refusal }));
  if (!known) {
    return incidents;
  }
  const { memory, cores, policy } = after.quota;
  if (
    known.quota.memory !== memory ||
    known.quota.cores !== cores ||
    known.quota.policy !== policy
  ) {
    incidents.push({
      kind: 'resized',
      before: known.quota,
      after: after.quota
    });
  }
  if (!known.usage.memory_over_by && after.usage.memory_over_by) {
    incidents.push({ kind: 'over', by: after.usage.memory_over_by });
  }
  return incidents;
}
