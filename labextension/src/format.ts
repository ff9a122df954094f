/** Powers of 1024, as CUDA and the quotas count, or of 1000. */
export type Units = 'binary' | 'decimal';

const NAMES: Record<Units, string[]> = {
  binary: ['B', 'KiB', 'MiB', 'GiB', 'TiB'],
  decimal: ['B', 'kB', 'MB', 'GB', 'TB']
};

/** The page's, for all that it shows: a user has one wish for them. */
let units: Units = 'binary';

/** From the next number on. */
export function setUnits(value: Units): void {
  units = value;
}

/** Three digits, and all of those before the point. */
function round(value: number): number {
  return Math.abs(value) >= 1000
    ? Math.round(value)
    : Number(value.toPrecision(3));
}

/** `1.5 GiB`: as people read it. */
export function formatBytes(bytes: number): string {
  const names = NAMES[units];
  const base = units === 'binary' ? 1024 : 1000;
  let unit = 0;
  let value = bytes;
  while (Math.abs(value) >= base && unit < names.length - 1) {
    value /= base;
    unit += 1;
  }
  return `${round(value)} ${names[unit]}`;
}

/** `25 %`. */
export function formatPercent(value: number): string {
  return `${Number(value.toPrecision(3))} %`;
}
