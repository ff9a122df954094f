import { IOwner, IQuota, IRefusal, Usage } from './request';

/** What happened between two answers, and a person should hear of. */
export type Incident =
  | { kind: 'refused'; refusal: IRefusal }
  | { kind: 'resized'; before: IQuota; after: IQuota }
  | { kind: 'over'; by: number };

/** A program that is refused tries again: that is one incident. */
const SAME_WITHIN_S = 3;
/** Before the first answer it may have happened while the page was loading. */
const NEWS_S = 30;

function identity(owner: IOwner): string {
  return `${owner.kind} ${owner.id ?? owner.name}`;
}

function isSame(one: IRefusal, other: IRefusal): boolean {
  return (
    identity(one.asker) === identity(other.asker) &&
    one.bytes === other.bytes &&
    Math.abs(one.time - other.time) <= SAME_WITHIN_S
  );
}

function refusalsOf(usage: Usage | null): IRefusal[] {
  return usage?.kind === 'slice' ? usage.refusals.recent : [];
}

/**
 * Compare two answers. `known`: the last answer that told of a slice, null
 * when there was none; `now`: seconds since 1970.
 */
export function compare(
  known: Usage | null,
  after: Usage,
  now: number
): Incident[] {
  if (after.kind !== 'slice') {
    return [];
  }
  const old = refusalsOf(known);
  const newest = Math.max(...old.map(each => each.time), 0);
  const since = known ? newest : now - NEWS_S;
  const incidents: Incident[] = after.refusals.recent
    .filter(each => each.time > since)
    .filter(each => !old.some(before => isSame(before, each)))
    .map(refusal => ({ kind: 'refused', refusal }));
  if (known?.kind !== 'slice') {
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
