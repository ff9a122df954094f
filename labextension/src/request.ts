import { URLExt } from '@jupyterlab/coreutils';
import { ServerConnection } from '@jupyterlab/services';

/** What uses the GPU: a notebook, a console, a terminal, or a process by itself. */
export interface IOwner {
  kind: 'notebook' | 'console' | 'terminal' | 'kernel' | 'other';
  name: string;
  path: string | null;
  /** Of the kernel, or the terminal's name; null: it can't be ended from here. */
  id: string | null;
}

export interface IHolder extends IOwner {
  /** Bytes. */
  memory: number;
  /** Percent of the GPU's compute. */
  cores: number;
  busy: boolean;
  /** Seconds since 1970; null: never. */
  last_active: number | null;
}

/** Something that would make room. */
export interface IWayOut {
  action: 'shutdown' | 'restart';
  kind: IOwner['kind'];
  id: string;
  name: string;
  busy: boolean;
  /** Bytes. */
  frees: number;
}

/** An allocation that was refused; bytes, and seconds since 1970. */
export interface IRefusal {
  /** When it was first: tells it from others. */
  first: number;
  time: number;
  times: number;
  call: string | null;
  bytes: number;
  free: number;
  asker: IOwner;
  holders: (IOwner & { memory: number })[];
  /** It is more than the whole slice. */
  fits_never: boolean;
  ways: IWayOut[];
}

/** Bytes and percent. */
export interface IQuota {
  memory: number;
  cores: number;
  policy: 'hard' | 'burst';
  /** Nobody else is on the GPU. */
  exclusive?: boolean;
}

/** Who holds GPU memory and rests, and until when that is let be; `server`: all of it. */
export interface IRest {
  kind: IOwner['kind'] | 'server';
  id: string | null;
  name: string;
  until: number;
}

/** What becomes of who rests. */
export interface IIdle {
  action: 'notify' | 'kernel' | 'server';
  seconds: number;
  rests: IRest[];
  /** Kernels that were shut down for it. */
  ended: { name: string; time: number }[];
}

/** GPU-hours of the user. */
export interface IHours {
  spent: number;
  allowed: number;
  /** So many more are let pass. */
  grace: number;
  state: 'enough' | 'low' | 'spent';
  /** The part of them at which was warned last; 0: none yet. */
  passed: number;
  /** What follows when they are spent: no new server, or the running ones are stopped as well. */
  end: 'refuse' | 'stop';
}

/** What the admin tells everybody on the node. */
export interface IMaintenance {
  message: string;
  /** No new slices are given. */
  closed: boolean;
  since: number;
}

/** Where a server of this user stands in the hub's queue for a GPU. */
export interface IQueue {
  /** Which one; the default one's name is empty. */
  server: string;
  /** It is this server. */
  here: boolean;
  /** Called: its room is kept. Ended: it got no GPU, and the words say why. */
  stage: 'waiting' | 'called' | 'ended';
  /** 1 is next. */
  number: number;
  /** Half of such waits are shorter; null: that can't be told. */
  minutes: number | null;
  /** So long its room is kept while it runs without a GPU; null: it is being started, or waits. */
  until: number | null;
  words: string;
  /** The queue's page. */
  url: string | null;
}

/** The server's slice. */
export interface ISlice {
  kind: 'slice';
  /** By the server's clock, in seconds since 1970: so are all times in here. */
  now: number;
  tier: 'guard' | 'shim' | 'none';
  gpu: { name: string; emulated: boolean; mps?: boolean; mig?: boolean };
  quota: IQuota;
  usage: { memory: number; memory_over_by: number; cores: number };
  refusals: { count: number; recent: IRefusal[] };
  holders: IHolder[];
  /** Null: nothing becomes of who rests. */
  idle: IIdle | null;
  /** Null: nobody counts them. */
  hours: IHours | null;
  /** Null: all is as usual. */
  maintenance: IMaintenance | null;
  /** Null: nothing of this user waits. */
  queue: IQueue | null;
  /** Processes that use the GPU without the shim, where that is what holds them. */
  outside: number[];
}

/** There is nothing to show, and why. */
export interface INone {
  kind: 'none';
  reason:
    'no-slice' | 'no-quota' | 'not-under-hub' | 'daemon-away' | 'server-away';
  message: string;
  /** As in a slice; undefined: nobody tells this server of it. */
  queue?: IQueue | null;
}

export type Usage = ISlice | INone;

/** Ask the server extension. Rejects where it does not answer, or answers with an error. */
export async function fetchUsage(
  settings: ServerConnection.ISettings
): Promise<Usage> {
  const url = URLExt.join(settings.baseUrl, 'vgpu', 'slice');
  const response = await ServerConnection.makeRequest(url, {}, settings);
  if (!response.ok) {
    throw new ServerConnection.ResponseError(response);
  }
  return (await response.json()) as Usage;
}
