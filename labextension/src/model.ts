import { ServerConnection } from '@jupyterlab/services';
import { VDomModel } from '@jupyterlab/ui-components';
import { Poll } from '@lumino/polling';

import { fetchUsage, Usage } from './request';

const INTERVAL_MS = 1000;
const BACKOFF_MAX_MS = 30000;

/** Keeps the last answer, and asks again while somebody looks. */
export class SliceModel extends VDomModel {
  constructor(settings: ServerConnection.ISettings) {
    super();
    this._poll = new Poll({
      auto: false,
      name: 'jupyter-vgpu:slice',
      factory: async () => {
        this._usage = await fetchUsage(settings);
        this.stateChanged.emit();
      },
      frequency: { interval: INTERVAL_MS, backoff: true, max: BACKOFF_MAX_MS },
      standby: () => (this._shown ? 'when-hidden' : true)
    });
    void this._poll.start();
  }

  /** Null until the first answer. */
  get usage(): Usage | null {
    return this._usage;
  }

  /** Whether the panel is on the screen: it asks for nothing while it is not. */
  set isShown(value: boolean) {
    if (value && !this._shown) {
      void this._poll.refresh();
    }
    this._shown = value;
  }

  dispose(): void {
    this._poll.dispose();
    super.dispose();
  }

  private _poll: Poll;
  private _shown = false;
  private _usage: Usage | null = null;
}
