/** How near to its limit something is. */
export type Level = 'normal' | 'high' | 'full';

const FULL = 0.95;

/** `part` of the limit is in use; `warnAt` is where that is much. */
export function levelOf(part: number, warnAt: number): Level {
  if (part >= Math.max(FULL, warnAt)) {
    return 'full';
  }
  return part >= warnAt ? 'high' : 'normal';
}
