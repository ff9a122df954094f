const UNITS = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];

/** Three digits, and all of those before the point. */
function round(value: number): number {
  return Math.abs(value) >= 1000
    ? Math.round(value)
    : Number(value.toPrecision(3));
}

/** `1.5 GiB`: as people read it. */
export function formatBytes(bytes: number): string {
  let unit = 0;
  let value = bytes;
  while (Math.abs(value) >= 1024 && unit < UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${round(value)} ${UNITS[unit]}`;
}

/** `25 %`. */
export function formatPercent(value: number): string {
  return `${Number(value.toPrecision(3))} %`;
}
