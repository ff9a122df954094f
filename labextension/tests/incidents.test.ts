import assert from 'node:assert/strict';
import { test } from 'node:test';

import { compare, Slowness, turnOf } from '../src/incidents';
import { IHours, IIdle, IQueue, IRefusal, ISlice } from '../src/request';

const NOW = 1000;
const TRAIN = {
  kind: 'notebook',
  name: 'train.ipynb',
  path: 'train.ipynb',
  id: 'k1'
} as const;

function refusal(first: number, time = first, bytes = 100): IRefusal {
  return {
    first,
    time,
    times: 1,
    call: 'cuMemAlloc',
    bytes,
    free: 10,
    asker: TRAIN,
    holders: [],
    fits_never: false,
    ways: []
  };
}

function slice(
  recent: IRefusal[] = [],
  memory = 1000,
  memory_over_by = 0
): ISlice {
  return {
    kind: 'slice',
    now: NOW,
    tier: 'guard',
    gpu: { name: 'a GPU', emulated: true },
    quota: { memory, cores: 50, policy: 'hard' },
    usage: { memory: 0, memory_over_by, cores: 0 },
    refusals: { count: recent.length, recent },
    holders: [],
    idle: null,
    hours: null,
    maintenance: null,
    queue: null,
    outside: []
  };
}

function kinds(before: ISlice | null, after: ISlice): string[] {
  return compare(before, after).map(incident => incident.kind);
}

test('nothing new is told', () => {
  assert.deepEqual(kinds(slice([refusal(990)]), slice([refusal(990)])), []);
});

test('a refusal is told once, its retries are not', () => {
  const first = slice([refusal(990)]);
  const told = ['refused'];
  assert.deepEqual(kinds(slice(), first), told);
  assert.deepEqual(kinds(first, slice([refusal(990, 995)])), []);
  assert.deepEqual(kinds(first, slice([refusal(990), refusal(998)])), told);
  const other = refusal(991, 991, 200);
  assert.deepEqual(kinds(first, slice([refusal(990), other])), told);
});

test('a page that was just loaded tells of the last moments alone', () => {
  const both = slice([refusal(100), refusal(995)]);
  assert.deepEqual(kinds(null, both), ['refused']);
  assert.deepEqual(kinds(null, slice([], 500, 10)), []);
});

test('a changed quota, and memory beyond it, are told', () => {
  assert.deepEqual(kinds(slice(), slice([], 500)), ['resized']);
  assert.deepEqual(kinds(slice(), slice([], 500, 10)), ['resized', 'over']);
  assert.deepEqual(kinds(slice([], 500, 10), slice([], 500, 20)), []);
  const burst = slice();
  burst.quota.policy = 'burst';
  assert.deepEqual(kinds(slice(), burst), ['resized']);
});

function resting(
  action: IIdle['action'],
  until: number,
  ended: IIdle['ended'] = []
): ISlice {
  const rest = {
    kind: 'notebook',
    id: 'k1',
    name: 'old.ipynb',
    until
  } as const;
  const idle: IIdle = { action, seconds: 600, rests: [rest], ended };
  return { ...slice(), idle };
}

test('who rests is warned once, a fifth of the time before', () => {
  const early = resting('kernel', NOW + 121);
  const late = resting('kernel', NOW + 120);
  assert.deepEqual(kinds(early, early), []);
  assert.deepEqual(kinds(early, late), ['rests']);
  assert.deepEqual(kinds(null, late), ['rests']);
  assert.deepEqual(kinds(late, late), []);
  const again = resting('kernel', NOW + 119); // it worked in between
  assert.deepEqual(kinds(late, again), ['rests']);
});

test('where nothing is done the user is told when it is time', () => {
  assert.deepEqual(kinds(slice(), resting('notify', NOW + 1)), []);
  assert.deepEqual(kinds(slice(), resting('notify', NOW)), ['rests']);
});

test('a kernel that was shut down for it is told of once', () => {
  const ended = [{ name: 'old.ipynb', time: NOW - 1 }];
  const after = resting('kernel', NOW + 500, ended);
  assert.deepEqual(kinds({ ...slice(), now: NOW - 2 }, after), ['ended']);
  assert.deepEqual(kinds(after, after), []);
});

test('it is the server whose clock counts', () => {
  const early = { ...slice([refusal(5)]), now: 10 };
  assert.deepEqual(kinds(null, early), ['refused']);
});

function withHours(
  state: IHours['state'] | null,
  passed = state === 'low' ? 0.8 : 0
): ISlice {
  const hours = { spent: 1, allowed: 2, grace: 0, end: 'refuse' } as const;
  return { ...slice(), hours: state && { ...hours, state, passed } };
}

test('hours that run out are told at each step, and more of them are no news', () => {
  const [enough, low, spent] = (['enough', 'low', 'spent'] as const).map(
    state => withHours(state)
  );
  const lower = withHours('low', 0.95);
  const told = ['hours'];
  assert.deepEqual(kinds(enough, low), told);
  assert.deepEqual(kinds(withHours(null), low), told);
  assert.deepEqual(kinds(low, lower), told);
  assert.deepEqual(kinds(lower, low), []);
  assert.deepEqual(kinds(lower, lower), []);
  assert.deepEqual(kinds(lower, spent), told);
  assert.deepEqual(kinds(low, low), []);
  assert.deepEqual(kinds(spent, enough), []);
  assert.deepEqual(kinds(null, lower), []);
  assert.deepEqual(kinds(null, spent), told);
});

test('maintenance is told when it is said, when it is changed and when it is over', () => {
  const closed = { message: 'at 18:00', closed: true, since: 1 };
  const shut = { ...slice(), maintenance: closed };
  const open = { ...slice(), maintenance: { ...closed, closed: false } };
  const told = ['maintenance'];
  assert.deepEqual(kinds(slice(), shut), told);
  assert.deepEqual(kinds(null, shut), told);
  assert.deepEqual(kinds(open, shut), told);
  assert.deepEqual(kinds(shut, slice()), told);
  assert.deepEqual(kinds(shut, shut), []);
});

test('compute that is used up for a minute is told of once', () => {
  const quota = { memory: 1, cores: 25, policy: 'hard' } as const;
  const samples = (cores: number, seconds: number, every = 1) =>
    Array.from({ length: seconds / every }, (_, at) => ({
      time: NOW + at * every,
      cores
    }));
  const slowness = new Slowness();
  assert.deepEqual(slowness.look(quota, []), []);
  assert.deepEqual(slowness.look(quota, samples(25, 50)), []);
  assert.deepEqual(slowness.look(quota, samples(12, 100)), []);
  assert.deepEqual(slowness.look(quota, samples(25, 100, 10)), []);
  const burst = { ...quota, policy: 'burst' } as const;
  assert.deepEqual(slowness.look(burst, samples(25, 100)), []);
  const told = [{ kind: 'slowed', cores: 25 }];
  assert.deepEqual(slowness.look(quota, samples(24, 100)), told);
  assert.deepEqual(slowness.look(quota, samples(25, 110)), []);
  const cut = new Slowness();
  cut.look({ ...quota, cores: 50 }, samples(45, 10));
  assert.deepEqual(cut.look(quota, samples(25, 50)), []);
  assert.deepEqual(cut.look(quota, samples(25, 100)), []); // not a minute of it
  assert.deepEqual(cut.look(quota, samples(25, 120)), told);
});

test('no slice, nothing to tell', () => {
  const none = { kind: 'none', reason: 'daemon-away', message: '' } as const;
  assert.deepEqual(compare(slice(), none), []);
});

test('who waits knows it; that it is the turn, and that it is over, is told once', () => {
  const waiting: IQueue = {
    server: '',
    here: true,
    stage: 'waiting',
    number: 2,
    minutes: 10,
    until: null,
    words: '',
    url: null
  };
  const called: IQueue = { ...waiting, stage: 'called', number: 0 };
  const kept = { ...called, until: 2000 };
  const ended: IQueue = { ...called, stage: 'ended', words: 'no' };
  const over = { kind: 'queue', queue: null };
  assert.deepEqual(turnOf(null, waiting), []);
  assert.deepEqual(turnOf(waiting, { ...waiting, number: 1 }), []);
  assert.deepEqual(turnOf(waiting, null), []);
  assert.deepEqual(turnOf(waiting, called), [{ kind: 'queue', queue: called }]);
  assert.deepEqual(turnOf(called, called), []);
  assert.deepEqual(turnOf(called, kept), [{ kind: 'queue', queue: kept }]);
  assert.deepEqual(turnOf(kept, ended), [{ kind: 'queue', queue: ended }]);
  assert.deepEqual(turnOf(kept, waiting), [over]);
  assert.deepEqual(turnOf(ended, null), [over]);
  assert.deepEqual(turnOf(undefined, ended), []);
  assert.deepEqual(turnOf(undefined, null), []);
  assert.deepEqual(turnOf(undefined, kept), [{ kind: 'queue', queue: kept }]);
});
