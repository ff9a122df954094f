import { Notification } from '@jupyterlab/apputils';
import { TranslationBundle } from '@jupyterlab/translation';

import { Actions } from './actions';
import { identity, Incident } from './incidents';
import { SliceModel } from './model';
import { IQueue, IRefusal } from './request';
import { incidentText, wayText } from './words';

const CALM_MS = 15000;
/** Who was told of it and closed it is not told again of the same asker for so long. */
const QUIET_MS = 60000;

/** One calm notification for each incident; of one who is refused again and again there is one, kept up to date. */
export class Notices {
  constructor(
    model: SliceModel,
    actions: Actions,
    trans: TranslationBundle,
    show: () => void
  ) {
    this._actions = actions;
    this._trans = trans;
    this._show = show;
    model.happened.connect((_, incident) => {
      if (this.enabled) {
        this._tell(incident);
      }
    });
    model.stateChanged.connect(() => {
      const usage = model.usage;
      if (usage?.kind === 'slice') {
        const free = usage.quota.memory - usage.usage.memory;
        this._renew(usage.refusals.recent, free);
      } else if (usage && usage.reason !== 'daemon-away') {
        this._renew([], Infinity); // whoever lacked memory is gone with the server
      }
    });
  }

  /** Whether the user wants any. */
  enabled = true;

  private _tell(incident: Incident): void {
    const text = incidentText(incident, this._trans);
    if (incident.kind === 'refused') {
      this._tellRefusal(incident.refusal, text);
    } else if (incident.kind === 'queue') {
      this._tellTurn(incident.queue, text);
    } else if (incident.kind === 'hours' || incident.kind === 'maintenance') {
      this._tellState(incident, text);
    } else if (incident.kind === 'rests' || incident.kind === 'ended') {
      Notification.warning(text, { autoClose: false });
    } else if (incident.kind === 'over') {
      Notification.warning(text, { autoClose: CALM_MS });
    } else {
      Notification.info(text, { autoClose: CALM_MS });
    }
  }

  /** What holds for long: one notification, kept up to date until it is closed. */
  private _tellState(
    incident: Extract<Incident, { kind: 'hours' | 'maintenance' }>,
    message: string
  ): void {
    this._dismissLast(incident.kind);
    const over =
      incident.kind === 'maintenance' && incident.maintenance === null;
    const id = over
      ? Notification.info(message, { autoClose: CALM_MS })
      : Notification.warning(message, { autoClose: false });
    this._states.set(incident.kind, id);
  }

  private _dismissLast(kind: Incident['kind']): void {
    const last = this._states.get(kind);
    if (last !== undefined) {
      Notification.dismiss(last);
    }
  }

  private _tellTurn(queue: IQueue | null, message: string): void {
    this._dismissLast('queue');
    if (queue) {
      const { url } = queue;
      const actions = url
        ? [
            {
              label: this._trans.__('To the Queue'),
              callback: () => {
                window.open(url, '_blank', 'noopener');
              }
            }
          ]
        : [];
      const id = Notification.warning(message, { actions, autoClose: false });
      this._states.set('queue', id);
    }
  }

  private _tellRefusal(refusal: IRefusal, message: string): void {
    const asker = identity(refusal.asker);
    const told = this._told.get(asker);
    const isOpen = told !== undefined && Notification.manager.has(told.id);
    if (told && !isOpen && Date.now() - told.at < QUIET_MS) {
      return;
    }
    let id = isOpen ? told.id : '';
    const actions = this._buttons(() => id, refusal);
    if (isOpen) {
      Notification.update({ id, message, actions });
    } else {
      id = Notification.error(message, { actions, autoClose: false });
    }
    this._told.set(asker, { id, at: Date.now(), refusal });
  }

  /**
   * What would make room changes with who holds it: an open notification offers what helps now, or goes, as it does
   * after a while where there is room. free: bytes.
   */
  private _renew(recent: readonly IRefusal[], free: number): void {
    for (const [asker, told] of this._told) {
      if (told.refusal.bytes <= free && Date.now() - told.at > CALM_MS) {
        Notification.dismiss(told.id);
        this._told.delete(asker); // the next one is news
        continue;
      }
      const now = recent.find(each => each.first === told.refusal.first);
      if (
        !now ||
        JSON.stringify(now.ways) === JSON.stringify(told.refusal.ways) ||
        !Notification.manager.has(told.id)
      ) {
        continue;
      }
      told.refusal = now;
      if (now.ways.length === 0) {
        Notification.dismiss(told.id);
      } else {
        const actions = this._buttons(() => told.id, now);
        Notification.update({ id: told.id, actions });
      }
    }
  }

  private _buttons(
    id: () => string,
    refusal: IRefusal
  ): Notification.IAction[] {
    const ways = refusal.ways.map(way => ({
      label: wayText(way, this._trans),
      callback: (event: MouseEvent) => {
        event.preventDefault(); // it stays until it is done
        void this._actions.run(way.action, way).then(done => {
          if (done) {
            Notification.dismiss(id());
          }
        });
      }
    }));
    const all = {
      label: this._trans.__('Show GPU Slice'),
      callback: this._show
    };
    return ways.length > 0 ? ways : [all];
  }

  private _actions: Actions;
  private _trans: TranslationBundle;
  private _show: () => void;
  private _states = new Map<Incident['kind'], string>();
  private _told = new Map<
    string,
    { id: string; at: number; refusal: IRefusal }
  >();
}
