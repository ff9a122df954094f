import { ServerConnection } from '@jupyterlab/services';
import { TranslationBundle } from '@jupyterlab/translation';
import { VDomModel } from '@jupyterlab/ui-components';
import { Poll } from '@lumino/polling';
import { ISignal, Signal } from '@lumino/signaling';

import { compare, Incident, Slowness, turnOf } from './incidents';
import { fetchUsage, IQueue, ISlice, Usage } from './request';
import { localise } from './words';

/** While only the status bar is looked at it is asked for half as often. */
const BAR_FACTOR = 2;
/** A server without a slice gets none while it runs; it may be told of its user's turn. */
const NEVER_MS = 60000;
const NEWS_MS = 5000;
const BACKOFF_MAX_MS = 30000;
/** What was in use is kept for so long. */
export const HISTORY_S = 120;

/** What was in use at a moment: bytes, percent, seconds since 1970. */
export interface ISample {
  time: number;
  memory: number;
  cores: number;
}

/** Keeps the last answer, and asks again while the page is on the screen. */
export class SliceModel extends VDomModel {
  constructor(settings: ServerConnection.ISettings, trans: TranslationBundle) {
    super();
    this._poll = new Poll({
      auto: false,
      name: 'jupyter-vgpu:slice',
      factory: async () => {
        try {
          this._take(localise(await fetchUsage(settings), trans));
        } catch (error) {
          // a hub's page, where the server is stopped or being started, is no answer of the server's
          const isOurs = error instanceof ServerConnection.NetworkError;
          const message = isOurs ? error.message : '';
          this._take({ kind: 'none', reason: 'server-away', message });
          throw error; // it is asked less and less often
        }
      },
      frequency: {
        interval: BAR_FACTOR * 1000,
        backoff: true,
        max: BACKOFF_MAX_MS
      },
      standby: 'when-hidden'
    });
    void this._poll.start();
  }

  /** Null until the first answer. */
  get usage(): Usage | null {
    return this._usage;
  }

  /** Oldest first. */
  get history(): readonly ISample[] {
    return this._history;
  }

  /** Of each thing that a person should hear of. */
  get happened(): ISignal<this, Incident> {
    return this._happened;
  }

  /** From which part of the quota on memory is shown as nearly full. */
  get warnAt(): number {
    return this._warnAt;
  }

  set warnAt(value: number) {
    this._warnAt = value;
    this.stateChanged.emit();
  }

  /** Seconds from one question to the next while the panel is on the screen. */
  set seconds(value: number) {
    this._panelMs = 1000 * value;
    this._setPace();
  }

  /** Whether the panel is on the screen: it is asked for more often then. */
  set isShown(value: boolean) {
    if (value === this._shown) {
      return;
    }
    this._shown = value;
    this._setPace();
    if (value) {
      void this._poll.refresh();
    }
  }

  /** Ask now: something was done that changes the answer. */
  refresh(): void {
    void this._poll.refresh();
  }

  dispose(): void {
    this._poll.dispose();
    Signal.clearData(this);
    super.dispose();
  }

  private _setPace(): void {
    const reason = this._usage?.kind === 'none' ? this._usage.reason : null;
    const never =
      reason !== null &&
      ['no-slice', 'no-quota', 'not-under-hub'].includes(reason);
    const wanted = this._shown ? this._panelMs : BAR_FACTOR * this._panelMs;
    const rests = this._usage?.queue === undefined ? NEVER_MS : NEWS_MS;
    const interval = never ? rests : wanted;
    if (interval !== this._poll.frequency.interval) {
      this._poll.frequency = { ...this._poll.frequency, interval };
    }
  }

  private _take(usage: Usage): void {
    const now = Date.now() / 1000;
    const incidents = compare(this._known, usage);
    if (usage.queue !== undefined) {
      incidents.push(...turnOf(this._queue, usage.queue));
      this._queue = usage.queue;
    }
    this._usage = usage;
    this._setPace();
    if (usage.kind === 'slice') {
      this._known = usage;
      const { memory, cores } = usage.usage;
      this._history = [
        ...this._history.filter(sample => sample.time > now - HISTORY_S),
        { time: now, memory, cores }
      ];
      incidents.push(...this._slowness.look(usage.quota, this._history));
    }
    this.stateChanged.emit();
    incidents.forEach(incident => {
      this._happened.emit(incident);
    });
  }

  private _poll: Poll;
  private _shown = false;
  private _panelMs = 1000;
  private _usage: Usage | null = null;
  private _known: ISlice | null = null;
  private _queue: IQueue | null | undefined = undefined;
  private _history: ISample[] = [];
  private _slowness = new Slowness();
  private _warnAt = 0.8;
  private _happened = new Signal<this, Incident>(this);
}
