import { TranslationBundle } from '@jupyterlab/translation';

import { formatBytes, formatPercent } from './format';
import { Incident } from './incidents';
import { IQuota, IRefusal, ISlice, IWayOut } from './request';

/** `4 GiB and 25 %`. */
function quotaText(quota: IQuota, trans: TranslationBundle): string {
  return trans.__(
    '%1 of memory and %2 of compute',
    formatBytes(quota.memory),
    formatPercent(quota.cores)
  );
}

/** A toast shows 140 characters. */
const NAMED_HOLDERS = 2;

/** What was refused to whom, and who holds the rest. */
export function refusalText(
  refusal: IRefusal,
  trans: TranslationBundle
): string {
  if (refusal.fits_never) {
    return trans.__(
      '%1 asked for %2 of GPU memory. That is more than your whole slice.',
      refusal.asker.name,
      formatBytes(refusal.bytes)
    );
  }
  const said = trans.__(
    '%1 asked for %2 of GPU memory; %3 was free.',
    refusal.asker.name,
    formatBytes(refusal.bytes),
    formatBytes(refusal.free)
  );
  const holders = refusal.holders
    .slice(0, NAMED_HOLDERS)
    .map(holder => `${holder.name} (${formatBytes(holder.memory)})`)
    .join(', ');
  return holders ? `${said} ${trans.__('In use by: %1.', holders)}` : said;
}

/** What a person can do about it without a button. */
export function adviceText(
  refusal: IRefusal,
  trans: TranslationBundle
): string {
  return refusal.fits_never
    ? trans.__('Use less, or start the server with a larger slice.')
    : trans.__(
        'Make room: end what rests, or free what you hold (in PyTorch: delete it, then torch.cuda.empty_cache()).'
      );
}

/** What is on a button that makes room. */
export function wayText(way: IWayOut, trans: TranslationBundle): string {
  return way.action === 'restart'
    ? trans.__('Restart %1', way.name)
    : trans.__('Shut down %1', way.name);
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
      return trans.__(
        'Your GPU slice was changed: %1 now, %2 before.',
        quotaText(incident.after, trans),
        quotaText(incident.before, trans)
      );
    case 'over':
      return trans.__(
        'Your programs hold %1 more than your GPU slice has now. They go on, but nothing new can be allocated.',
        formatBytes(incident.by)
      );
  }
}

/** What holds the slice, and how. */
export function tierText(slice: ISlice, trans: TranslationBundle): string {
  const policy =
    slice.quota.policy === 'hard'
      ? trans.__('never more than your share')
      : trans.__('your share, and more while the GPU is idle');
  switch (slice.tier) {
    case 'guard':
      return trans.__('Held by the guard: %1.', policy);
    case 'shim':
      return trans.__(
        'Held by the shim, for programs that use CUDA as usual: %1.',
        policy
      );
    case 'none':
      return trans.__('No program has used the GPU in this slice yet.');
  }
}
