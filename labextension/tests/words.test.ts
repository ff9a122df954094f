import assert from 'node:assert/strict';
import { test } from 'node:test';

import { TranslationBundle } from '@jupyterlab/translation';

import { formatBytes, formatPercent, setUnits } from '../src/format';
import { levelOf } from '../src/level';
import { IRefusal } from '../src/request';
import { adviceText, incidentText, refusalText } from '../src/words';

const GIB = 1 << 30;
const TOAST = 140;
/** English, as where nothing is translated. */
const trans = {
  __: (text: string, ...values: unknown[]) =>
    text.replace(/%(\d)/g, (_, place: string) => String(values[+place - 1])),
  _n: (one: string, many: string, count: number) =>
    count === 1 ? one : many.replace('%1', String(count))
} as TranslationBundle;

function owner(name: string): IRefusal['asker'] {
  return { kind: 'notebook', name, path: name, id: name };
}

function refusal(bytes: number): IRefusal {
  return {
    first: 0,
    time: 0,
    times: 1,
    call: null,
    bytes,
    free: GIB / 2,
    asker: owner('train.ipynb'),
    holders: ['old.ipynb', 'train.ipynb', 'third.ipynb'].map(name => ({
      ...owner(name),
      memory: GIB
    })),
    fits_never: bytes > 4 * GIB,
    ways: []
  };
}

test('who asked, what was free and who holds the most fit onto a toast', () => {
  const text = refusalText(refusal(GIB), trans);
  assert.equal(
    text,
    'train.ipynb asked for 1 GiB of GPU memory; 512 MiB was free. Most is held by old.ipynb: 1 GiB.'
  );
  const long = refusal(GIB);
  const name = 'Homework 7: convolutional networks (group 12, final).ipynb';
  long.asker = owner(name);
  long.holders[0] = { ...owner(name), memory: GIB };
  const cut = refusalText(long, trans);
  assert.ok(cut.length <= TOAST, cut);
  assert.match(cut, /^Homework 7: co… final\).ipynb asked/);
});

test('a changed policy is called what it means', () => {
  const hard = { memory: GIB, cores: 50, policy: 'hard' } as const;
  const after = { ...hard, policy: 'burst' } as const;
  assert.equal(
    incidentText({ kind: 'resized', before: hard, after }, trans),
    'You may use compute that others leave idle now.'
  );
});

test('who rests is told what becomes of it, and when', () => {
  const rest = {
    kind: 'notebook',
    id: 'k',
    name: 'a.ipynb',
    until: 0
  } as const;
  const said = (action: 'notify' | 'kernel' | 'server', left: number): string =>
    incidentText({ kind: 'rests', rest, action, left }, trans);
  assert.match(said('kernel', 290), /^a\.ipynb holds .* In 5 minutes it is/);
  assert.match(said('server', 20), /In 20 seconds your server is stopped/);
  for (const action of ['notify', 'kernel', 'server'] as const) {
    assert.ok(said(action, 290).length <= TOAST, said(action, 290));
  }
});

test('what never fits is called that', () => {
  const never = refusal(5 * GIB);
  assert.match(refusalText(never, trans), /more than your whole slice/);
  assert.match(adviceText(never, GIB, trans), /a larger slice/);
});

test('who has made room is not told to make more', () => {
  const refused = { ...refusal(GIB), fits_never: false };
  assert.match(adviceText(refused, GIB - 1, trans), /^Make room/);
  assert.equal(adviceText(refused, GIB, trans), 'There is room for it now.');
});

test('amber begins where the user says, red near the end', () => {
  assert.deepEqual(
    [0.5, 0.8, 0.95, 1.2].map(part => levelOf(part, 0.8)),
    ['normal', 'high', 'full', 'full']
  );
  assert.equal(levelOf(0.96, 1), 'normal');
});

test('numbers are as people read them', () => {
  assert.deepEqual([0, 1023, 1536, 3.456 * GIB].map(formatBytes), [
    '0 B',
    '1023 B',
    '1.5 KiB',
    '3.46 GiB'
  ]);
  assert.equal(formatPercent(12.345), '12.3 %');
});

test('who counts in powers of ten reads those', () => {
  setUnits('decimal');
  assert.equal(formatBytes(2 ** 31), '2.15 GB');
  assert.equal(formatBytes(999), '999 B');
  setUnits('binary');
  assert.equal(formatBytes(2 ** 31), '2 GiB');
});
