import {
  Dialog,
  ISessionContext,
  showDialog,
  showErrorMessage
} from '@jupyterlab/apputils';
import { Kernel, KernelAPI, ServiceManager } from '@jupyterlab/services';
import { TranslationBundle } from '@jupyterlab/translation';

import { SliceModel } from './model';
import { IOwner } from './request';

/** What can be done about somebody who uses the GPU. */
export type Action = 'interrupt' | 'restart' | 'shutdown';

type Target = Pick<IOwner, 'kind' | 'id' | 'name'>;

/** A document or console that is open in the page, some with a kernel. */
export interface IOpen {
  sessionContext?: ISessionContext;
}

/** Does it to kernels and terminals; asks first where something is lost. */
export class Actions {
  constructor(
    services: ServiceManager.IManager,
    model: SliceModel,
    trans: TranslationBundle,
    open: () => Iterable<IOpen>
  ) {
    this._services = services;
    this._model = model;
    this._trans = trans;
    this._open = open;
  }

  /** Which of them there are for it. */
  static of(target: Target): Action[] {
    if (target.id === null) {
      return [];
    }
    return target.kind === 'terminal'
      ? ['shutdown']
      : ['interrupt', 'restart', 'shutdown'];
  }

  /** The action in words, with whom it is done to. */
  label(action: Action, target: Target): string {
    switch (action) {
      case 'interrupt':
        return this._trans.__('Interrupt %1', target.name);
      case 'restart':
        return this._trans.__('Restart kernel of %1', target.name);
      case 'shutdown':
        return this._trans.__('Shut down %1', target.name);
    }
  }

  /** Resolves to whether it was done; then new numbers are asked for. */
  async run(action: Action, target: Target): Promise<boolean> {
    const id = target.id;
    if (id === null || !(await this._isMeant(action, target))) {
      return false;
    }
    try {
      await this._perform(action, target.kind, id);
      this._model.refresh();
      return true;
    } catch (error) {
      const title = this._trans.__(
        'It did not work: %1',
        this.label(action, target)
      );
      await showErrorMessage(title, error as Error);
      return false;
    }
  }

  private async _isMeant(action: Action, target: Target): Promise<boolean> {
    if (action === 'interrupt') {
      return true;
    }
    const label = this.label(action, target);
    const said =
      target.kind === 'terminal'
        ? this._trans.__('What runs in it is ended.')
        : this._trans.__(
            'Its variables are lost; files and the text of the notebook are kept.'
          );
    const busy = this._trans.__('It works on the GPU now.');
    const answer = await showDialog({
      title: label,
      body: this._isBusy(target) ? `${busy} ${said}` : said,
      buttons: [Dialog.cancelButton(), Dialog.warnButton({ label })]
    });
    return answer.button.accept;
  }

  private async _perform(
    action: Action,
    kind: IOwner['kind'],
    id: string
  ): Promise<void> {
    const { kernels, serverSettings, sessions, terminals } = this._services;
    if (kind === 'terminal') {
      await terminals.shutdown(id);
    } else if (action === 'interrupt') {
      await KernelAPI.interruptKernel(id, serverSettings);
    } else if (action === 'restart') {
      // the page's own connection is told, or the cells that ran would wait for ever
      await (this._connection(id)?.restart() ??
        KernelAPI.restartKernel(id, serverSettings));
    } else {
      await sessions.refreshRunning();
      const running = Array.from(sessions.running());
      const session = running.find(each => each.kernel?.id === id);
      await (session ? sessions.shutdown(session.id) : kernels.shutdown(id));
    }
  }

  private _isBusy(target: Target): boolean {
    const usage = this._model.usage;
    return (
      usage?.kind === 'slice' &&
      usage.holders.some(
        each => each.kind === target.kind && each.id === target.id && each.busy
      )
    );
  }

  private _connection(id: string): Kernel.IKernelConnection | null {
    for (const { sessionContext } of this._open()) {
      const kernel = sessionContext?.session?.kernel;
      if (kernel?.id === id) {
        return kernel;
      }
    }
    return null;
  }

  private _open: () => Iterable<IOpen>;
  private _model: SliceModel;
  private _services: ServiceManager.IManager;
  private _trans: TranslationBundle;
}
