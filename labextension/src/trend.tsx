import * as React from 'react';

const WIDTH = 240;
const HEIGHT = 40;

/**
 * A value over the last minutes, beneath its limit. Time goes to the right.
 * points: seconds and values, oldest first.
 */
export function Trend(props: {
  points: readonly { time: number; value: number }[];
  limit: number;
  seconds: number;
  label: string;
}): React.ReactElement {
  const { points, limit, seconds, label } = props;
  const end = points.length > 0 ? points[points.length - 1].time : 0;
  const top = Math.max(limit, ...points.map(point => point.value));
  const x = (time: number): number => WIDTH * (1 - (end - time) / seconds);
  const y = (value: number): number =>
    HEIGHT - 1 - (value / top) * (HEIGHT - 2);
  const line = points
    .map(point => `${x(point.time).toFixed(1)},${y(point.value).toFixed(1)}`)
    .join(' ');
  const first = points.length > 0 ? x(points[0].time).toFixed(1) : '0';
  return (
    <svg
      className="jp-vgpu-Trend"
      viewBox={`0 0 ${WIDTH} ${HEIGHT}`}
      preserveAspectRatio="none"
      role="img"
      aria-label={label}
    >
      <polygon points={`${first},${HEIGHT} ${line} ${WIDTH},${HEIGHT}`} />
      <polyline points={line} />
      <line x1={0} x2={WIDTH} y1={y(limit)} y2={y(limit)} />
    </svg>
  );
}
