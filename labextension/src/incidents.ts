import {
  IHours,
  IIdle,
  IMaintenance,
  IOwner,
  IQueue,
  IQuota,
  IRefusal,
  IRest,
  ISlice,
  Usage
} from './request';

/** What happened between two answers, and a person should hear of. */
export type Incident =
  | { kind: 'refused'; refusal: IRefusal }
  | { kind: 'resized'; before: IQuota; after: IQuota }
  | { kind: 'over'; by: number }
  | { kind: 'rests'; rest: IRest; action: IIdle['action']; left: number }
  | { kind: 'ended'; name: string; seconds: number }
  | { kind: 'hours'; hours: IHours }
  | { kind: 'maintenance'; maintenance: IMaintenance | null }
  | { kind: 'slowed'; cores: number }
  | { kind: 'queue'; queue: IQueue | null };

/** Before the first answer it may have happened while the page was loading. */
const NEWS_S = 30;

/** So long before something is done about who rests: a part of the time, and at most so many seconds. */
const WARN_PART = 0.2;
const WARN_MAX_S = 300;

/** Who is to be warned. One that is told of it already is not, until it has worked again. */
function resting(slice: ISlice | null): Map<string, IRest> {
  const idle = slice?.idle;
  if (!slice || !idle) {
    return new Map();
  }
  const warn = Math.min(WARN_MAX_S, WARN_PART * idle.seconds);
  // who is only to be told is told when it is time
  const from = idle.action === 'notify' ? 0 : warn;
  return new Map(
    idle.rests
      .filter(rest => rest.until - slice.now <= from)
      .map(rest => [`${rest.kind} ${rest.id ?? ''} ${rest.until}`, rest])
  );
}

function idleIncidents(known: ISlice | null, after: ISlice): Incident[] {
  const idle = after.idle;
  if (!idle) {
    return [];
  }
  const before = resting(known);
  const rests: Incident[] = [...resting(after)]
    .filter(([key]) => !before.has(key))
    .map(([, rest]) => ({
      kind: 'rests',
      rest,
      action: idle.action,
      left: Math.max(0, rest.until - after.now)
    }));
  const since = known?.now ?? after.now - NEWS_S;
  const ended: Incident[] = idle.ended
    .filter(each => each.time > since)
    .map(({ name }) => ({ kind: 'ended', name, seconds: idle.seconds }));
  return [...rests, ...ended];
}

/** What one asker's incidents have in common. */
export function identity(owner: IOwner): string {
  return `${owner.kind} ${owner.id ?? owner.name}`;
}

const SPENT = 2;

/** More at each part that is warned at, which is 1 at the most. Before anybody counted there was enough. */
function scarcity(hours: IHours | null): number {
  return hours?.state === 'spent' ? SPENT : (hours?.passed ?? 0);
}

function isSame(
  before: IMaintenance | null | undefined,
  after: IMaintenance
): boolean {
  return before?.message === after.message && before.closed === after.closed;
}

/** Over so long, in so many samples or more, is looked whether a slice used all of its share. */
const SLOWED_S = 60;
const SLOWED_SAMPLES = 15;
/** All of it, as sampled numbers show it on average. */
const SLOWED_PART = 0.9;
/** So long nothing is said of it again. */
const SLOWED_AGAIN_S = 3600;

/** Programs that want more compute than their slice is ever given are slowed down: tells of it, once in a while. */
export class Slowness {
  /** samples: oldest first, percent and seconds. */
  look(
    quota: IQuota,
    samples: readonly { time: number; cores: number }[]
  ): Incident[] {
    const now = samples.at(-1)?.time ?? 0;
    if (quota.cores !== this._cores) {
      this._cores = quota.cores;
      this._since = now; // what was used before was of another share
    }
    const first = Math.max(samples[0]?.time ?? now, this._since);
    const known = now - first;
    const recent = samples.filter(each => each.time >= now - SLOWED_S);
    const mean =
      recent.reduce((sum, each) => sum + each.cores, 0) / recent.length;
    if (
      quota.policy !== 'hard' ||
      quota.cores >= 100 ||
      known < SLOWED_S ||
      recent.length < SLOWED_SAMPLES ||
      mean < SLOWED_PART * quota.cores ||
      now - this._told < SLOWED_AGAIN_S
    ) {
      return [];
    }
    this._told = now;
    return [{ kind: 'slowed', cores: quota.cores }];
  }

  private _cores: number | null = null;
  private _since = -Infinity;
  private _told = -Infinity;
}

/**
 * Whoever waits knows it; that the turn has come, has passed or that nothing came of it is told. Null: it is over.
 * before undefined: on the page's first answer; what ended then was told before, and the panel shows it.
 */
export function turnOf(
  before: IQueue | null | undefined,
  after: IQueue | null
): Incident[] {
  const isTold = (queue: IQueue | null | undefined): boolean =>
    queue?.stage === 'called' || queue?.stage === 'ended';
  if (before === undefined && after?.stage === 'ended') {
    return [];
  }
  const isSame =
    before?.server === after?.server &&
    before?.stage === after?.stage &&
    before?.until === after?.until &&
    before?.words === after?.words;
  if (isSame || !(isTold(before) || isTold(after))) {
    return [];
  }
  return [{ kind: 'queue', queue: isTold(after) ? after : null }];
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
  incidents.push(...idleIncidents(known, after));
  if (after.maintenance && !isSame(known?.maintenance, after.maintenance)) {
    incidents.push({ kind: 'maintenance', maintenance: after.maintenance });
  }
  // the spawn page has said how many are left when the server was started; that none are is said again
  const before = known ? scarcity(known.hours) : 1;
  if (after.hours && scarcity(after.hours) > before) {
    incidents.push({ kind: 'hours', hours: after.hours });
  }
  if (!known) {
    return incidents;
  }
  if (known.maintenance && !after.maintenance) {
    incidents.push({ kind: 'maintenance', maintenance: null });
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
