import { Notification } from '@jupyterlab/apputils';
import { TranslationBundle } from '@jupyterlab/translation';

import { Actions } from './actions';
import { Incident } from './incidents';
import { SliceModel } from './model';
import { IRefusal } from './request';
import { incidentText, wayText } from './words';

const CALM_MS = 15000;

/** One calm notification for each incident; what is out of memory stays until it is read. */
export class Notices {
  constructor(
    model: SliceModel,
    actions: Actions,
    trans: TranslationBundle,
    show: () => void
  ) {
    this._model = model;
    this._actions = actions;
    this._trans = trans;
    this._show = show;
    model.happened.connect((_, incident) => {
      if (this.enabled) {
        this._tell(incident);
      }
    });
  }

  /** Whether the user wants any. */
  enabled = true;

  private _tell(incident: Incident): void {
    const text = incidentText(incident, this._trans);
    if (incident.kind === 'refused') {
      Notification.error(text, {
        autoClose: false,
        actions: this._buttons(incident.refusal)
      });
    } else if (incident.kind === 'over') {
      Notification.warning(text, { autoClose: CALM_MS });
    } else {
      Notification.info(text, { autoClose: CALM_MS });
    }
  }

  private _buttons(refusal: IRefusal): Notification.IAction[] {
    const ways = refusal.ways.map(way => ({
      label: wayText(way, this._trans),
      callback: () => {
        void this._actions.run(way.action, way).then(() => {
          this._model.refresh();
        });
      }
    }));
    const all = {
      label: this._trans.__('Show GPU Slice'),
      callback: this._show
    };
    return ways.length > 0 ? ways : [all];
  }

  private _model: SliceModel;
  private _actions: Actions;
  private _trans: TranslationBundle;
  private _show: () => void;
}
