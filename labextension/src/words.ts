import { TranslationBundle } from '@jupyterlab/translation';

import { formatBytes, formatPercent } from './format';
import { Incident } from './incidents';
import {
  IHours,
  IIdle,
  IMaintenance,
  INone,
  IOwner,
  IQueue,
  IQuota,
  IRefusal,
  IRest,
  ISlice,
  IWayOut,
  Usage
} from './request';

/** A process' owner as it is called in the user's language; notebooks are called by their files. */
function localName<T extends Pick<IOwner, 'kind' | 'name' | 'id'>>(
  owner: T,
  trans: TranslationBundle
): T {
  switch (owner.kind) {
    case 'kernel':
      return { ...owner, name: trans.__('kernel without a notebook') };
    case 'terminal':
      return { ...owner, name: trans.__('Terminal %1', owner.id) };
    default:
      return owner;
  }
}

/** An answer with all names in the user's language. */
export function localise(usage: Usage, trans: TranslationBundle): Usage {
  if (usage.kind !== 'slice') {
    return usage;
  }
  const local = <T extends Pick<IOwner, 'kind' | 'name' | 'id'>>(each: T): T =>
    localName(each, trans);
  const recent = usage.refusals.recent.map(each => ({
    ...each,
    asker: local(each.asker),
    holders: each.holders.map(local),
    ways: each.ways.map(local)
  }));
  return {
    ...usage,
    holders: usage.holders.map(local),
    refusals: { ...usage.refusals, recent }
  };
}

/** Why there is nothing to show. */
export function noneText(none: INone, trans: TranslationBundle): string {
  switch (none.reason) {
    case 'not-under-hub':
      return trans.__('This server was not started by a hub that shares GPUs.');
    case 'no-slice':
      return none.queue
        ? trans.__('This server was started without a GPU.')
        : trans.__(
            'This server was started without a GPU. To get one, stop it and choose a GPU slice.'
          );
    case 'no-quota':
      return trans.__(
        'You may have no GPU on this hub now: ask its admins for one.'
      );
    case 'daemon-away':
      return trans.__(
        'The GPU service does not answer now. What runs goes on; numbers come back.'
      );
    case 'server-away':
      return none.message
        ? trans.__('Your server does not answer: %1', none.message)
        : trans.__(
            'Your server does not answer: it is stopped, or just being started.'
          );
  }
}

/** A toast shows 140 characters: a name gets so many of them. */
const NAME_MAX = 28;

/** The beginning and the end of a long name. */
function shorten(name: string): string {
  const half = (NAME_MAX - 1) / 2;
  return name.length <= NAME_MAX
    ? name
    : `${name.slice(0, Math.ceil(half))}…${name.slice(-Math.floor(half))}`;
}

/** `4 GiB of memory and 25 % of compute`. */
function quotaText(quota: IQuota, trans: TranslationBundle): string {
  return trans.__(
    '%1 of memory and %2 of compute',
    formatBytes(quota.memory),
    formatPercent(quota.cores)
  );
}

/** What was refused to whom, and who holds the rest. */
export function refusalText(
  refusal: IRefusal,
  trans: TranslationBundle
): string {
  if (refusal.fits_never) {
    return trans.__(
      '%1 asked for %2 of GPU memory. That is more than your whole slice.',
      shorten(refusal.asker.name),
      formatBytes(refusal.bytes)
    );
  }
  const said = trans.__(
    '%1 asked for %2 of GPU memory; %3 was free.',
    shorten(refusal.asker.name),
    formatBytes(refusal.bytes),
    formatBytes(refusal.free)
  );
  if (refusal.holders.length === 0) {
    return said;
  }
  const most = refusal.holders[0];
  const holds = trans.__(
    'Most is held by %1: %2.',
    shorten(most.name),
    formatBytes(most.memory)
  );
  return `${said} ${holds}`;
}

/** What a person can do about it without a button. free: bytes, now. */
export function adviceText(
  refusal: IRefusal,
  free: number,
  trans: TranslationBundle
): string {
  if (refusal.bytes <= free) {
    return trans.__('There is room for it now.');
  }
  return refusal.fits_never
    ? trans.__('Use less, or start the server with a larger slice.')
    : trans.__(
        'Make room: end what rests, or free what you hold (in PyTorch: delete it, then torch.cuda.empty_cache()).'
      );
}

/** What is on a button that makes room. */
export function wayText(way: IWayOut, trans: TranslationBundle): string {
  const name = shorten(way.name);
  const frees = formatBytes(way.frees);
  return way.action === 'restart'
    ? trans.__('Restart %1 (%2)', name, frees)
    : trans.__('Shut down %1 (%2)', name, frees);
}

/** An incident in a sentence or two. */
export function incidentText(
  incident: Incident,
  trans: TranslationBundle
): string {
  switch (incident.kind) {
    case 'refused':
      return refusalText(incident.refusal, trans);
    case 'resized':
      return resizedText(incident.before, incident.after, trans);
    case 'rests':
      return restsText(incident.rest, incident.action, incident.left, trans);
    case 'ended':
      return trans.__(
        '%1 was shut down: it held GPU memory and did nothing for %2.',
        shorten(incident.name),
        formatTime(incident.seconds, trans)
      );
    case 'over':
      return trans.__(
        'Your programs hold %1 more than your GPU slice has now. They go on, but nothing new can be allocated.',
        formatBytes(incident.by)
      );
    case 'hours':
      return hoursIncidentText(incident.hours, trans);
    case 'maintenance':
      return incident.maintenance
        ? maintenanceText(incident.maintenance, trans)
        : trans.__('The maintenance is over.');
    case 'slowed':
      return trans.__(
        'Your programs want more compute than the %1 of your GPU slice, and are slowed down to it.',
        formatPercent(incident.cores)
      );
    case 'queue':
      return incident.queue ? queueText(incident.queue, trans) : '';
  }
}

/** Where a server of this user stands in the queue. */
export function queueText(queue: IQueue, trans: TranslationBundle): string {
  switch (queue.stage) {
    case 'waiting':
      return waitText(queue, trans);
    case 'called':
      return calledText(queue, trans);
    case 'ended':
      return trans.__('You got no GPU: %1', queue.words);
  }
}

function waitText(queue: IQueue, trans: TranslationBundle): string {
  const place = trans.__(
    'You are number %1 in the queue for a GPU.',
    queue.number
  );
  return queue.minutes === null
    ? place
    : `${place} ${trans.__('As likely as not it is your turn within %1.', formatTime(60 * queue.minutes, trans))}`;
}

function calledText(queue: IQueue, trans: TranslationBundle): string {
  if (queue.until === null) {
    return trans.__('It is your turn for a GPU: the server is being started.');
  }
  const until = new Date(queue.until * 1000).toLocaleTimeString([], {
    hour: '2-digit',
    minute: '2-digit'
  });
  if (!queue.here) {
    return trans.__(
      'A GPU is kept for your server %1 until %2. Stop that server, and it starts again with the GPU.',
      queue.server || trans.__('without a name'),
      until
    );
  }
  return trans.__(
    'A GPU is kept for you until %1. Save your work and stop your server: it starts again with the GPU.',
    until
  );
}

/** What the admin says. */
export function maintenanceText(
  maintenance: IMaintenance,
  trans: TranslationBundle
): string {
  return maintenance.closed
    ? trans.__('Maintenance, no new slices: %1', maintenance.message)
    : trans.__('Maintenance: %1', maintenance.message);
}

/** `12.5`; whole ones without a fraction. */
function formatHours(hours: number): string {
  return `${Math.round(10 * hours) / 10}`;
}

/** What is left of the GPU-hours. */
export function hoursText(hours: IHours, trans: TranslationBundle): string {
  return trans.__(
    '%1 of %2 used, %3 left',
    formatHours(hours.spent),
    formatHours(hours.allowed),
    formatHours(Math.max(0, hours.allowed - hours.spent))
  );
}

function hoursIncidentText(hours: IHours, trans: TranslationBundle): string {
  if (hours.state === 'low') {
    return trans.__('Your GPU-hours run out: %1.', hoursText(hours, trans));
  }
  return hours.end === 'stop'
    ? trans.__('Your GPU-hours are used up: your server is stopped soon.')
    : trans.__(
        'Your GPU-hours are used up. This server goes on; the next one starts without a GPU.'
      );
}

/** `5 minutes`; under two minutes in seconds. */
function formatTime(seconds: number, trans: TranslationBundle): string {
  const minutes = Math.round(seconds / 60);
  return seconds < 120
    ? trans._n('a second', '%1 seconds', Math.round(seconds))
    : trans._n('a minute', '%1 minutes', minutes);
}

function restsText(
  rest: IRest,
  action: IIdle['action'],
  left: number,
  trans: TranslationBundle
): string {
  switch (action) {
    case 'notify':
      return trans.__(
        'You hold GPU memory and have not used it for a while. Others may need it: shut down what you do not need.'
      );
    case 'kernel':
      return trans.__(
        '%1 holds GPU memory and does nothing. In %2 it is shut down; what works is left alone.',
        shorten(rest.name),
        formatTime(left, trans)
      );
    case 'server':
      return trans.__(
        'You hold GPU memory and do nothing with it. In %1 your server is stopped; what works is left alone.',
        formatTime(left, trans)
      );
  }
}

function resizedText(
  before: IQuota,
  after: IQuota,
  trans: TranslationBundle
): string {
  const said: string[] = [];
  if (before.memory !== after.memory || before.cores !== after.cores) {
    said.push(
      trans.__(
        'Your GPU slice was changed: %1 now, %2 before.',
        quotaText(after, trans),
        quotaText(before, trans)
      )
    );
  }
  if (before.policy !== after.policy) {
    said.push(
      after.policy === 'burst'
        ? trans.__('You may use compute that others leave idle now.')
        : trans.__('You never get more than your share of compute now.')
    );
  }
  return said.join(' ');
}

/** What holds the slice, and how. */
export function tierText(slice: ISlice, trans: TranslationBundle): string {
  const held = heldText(slice, trans);
  return slice.quota.exclusive
    ? `${held} ${trans.__('Nobody else is on this GPU.')}`
    : held;
}

function heldText(slice: ISlice, trans: TranslationBundle): string {
  const policy =
    slice.quota.policy === 'hard'
      ? trans.__('never more than your share')
      : trans.__('your share, and more while the GPU is idle');
  switch (slice.tier) {
    case 'guard':
      return trans.__('Held by the guard: %1.', policy);
    case 'shim':
      if (slice.gpu.mps) {
        return trans.__(
          'Others run on this GPU at the same time (MPS): memory is held by the shim, compute by MPS. A fault in one program may end others.'
        );
      }
      if (slice.gpu.mig) {
        return trans.__(
          'A part of a GPU for you alone (MIG), held by the hardware.'
        );
      }
      return trans.__(
        'Held by the shim, for programs that use CUDA as usual: %1.',
        policy
      );
    case 'none':
      return trans.__('No program has used the GPU in this slice yet.');
  }
}
