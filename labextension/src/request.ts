import { URLExt } from '@jupyterlab/coreutils';
import { ServerConnection } from '@jupyterlab/services';

/** Who holds GPU memory: a notebook, a console, a terminal, or a process by itself. */
export interface IHolder {
  kind: 'notebook' | 'console' | 'terminal' | 'kernel' | 'other';
  name: string;
  path: string | null;
  memory: number;
  cores: number;
}

/** The server's slice; bytes and percent. */
export interface ISlice {
  kind: 'slice';
  tier: 'guard' | 'shim' | 'none';
  gpu: { name: string; emulated: boolean };
  quota: { memory: number; cores: number; policy: 'hard' | 'burst' };
  usage: { memory: number; memory_over_by: number; cores: number };
  holders: IHolder[];
  /** Processes that use the GPU without the shim, where that is what holds them. */
  outside: number[];
}

/** There is nothing to show, and why. */
export interface INone {
  kind: 'none';
  reason: 'no-slice' | 'not-under-hub' | 'daemon-away' | 'server-away';
  message: string;
}

export type Usage = ISlice | INone;

/** Ask the server extension. Rejects only on a network failure. */
export async function fetchUsage(
  settings: ServerConnection.ISettings
): Promise<Usage> {
  const url = URLExt.join(settings.baseUrl, 'vgpu', 'slice');
  const response = await ServerConnection.makeRequest(url, {}, settings);
  if (!response.ok) {
    return {
      kind: 'none',
      reason: 'server-away',
      message: `${response.status} ${response.statusText}`
    };
  }
  return (await response.json()) as Usage;
}
