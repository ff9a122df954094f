import {
  ILabShell,
  JupyterFrontEnd,
  JupyterFrontEndPlugin
} from '@jupyterlab/application';
import { ICommandPalette, showErrorMessage } from '@jupyterlab/apputils';
import { ISettingRegistry } from '@jupyterlab/settingregistry';
import { IStatusBar } from '@jupyterlab/statusbar';
import { ITranslator, nullTranslator } from '@jupyterlab/translation';

import { Actions, IOpen } from './actions';
import { setUnits, Units } from './format';
import { SliceModel } from './model';
import { Notices } from './notices';
import { SlicePanel } from './panel';
import { IOwner } from './request';
import { SliceStatus } from './status';

/** Commands of this extension. */
export namespace CommandIDs {
  export const show = 'vgpu:show';
}

const PLUGIN = 'jupyter-vgpu:panel';

const plugin: JupyterFrontEndPlugin<void> = {
  id: PLUGIN,
  description:
    'Shows the quota and usage of this server’s slice of a GPU, and tells what happens to it.',
  autoStart: true,
  optional: [
    ITranslator,
    ILabShell,
    ISettingRegistry,
    IStatusBar,
    ICommandPalette
  ],
  activate: (
    app: JupyterFrontEnd,
    translator: ITranslator | null,
    labShell: ILabShell | null,
    settings: ISettingRegistry | null,
    statusBar: IStatusBar | null,
    palette: ICommandPalette | null
  ) => {
    const trans = (translator ?? nullTranslator).load('jupyter_vgpu');
    const model = new SliceModel(app.serviceManager.serverSettings, trans);
    const actions = new Actions(
      app.serviceManager,
      model,
      trans,
      () => app.shell.widgets('main') as Iterable<IOpen>
    );
    const show = (): void => {
      void app.commands.execute(CommandIDs.show);
    };
    const open = (owner: IOwner): void => {
      openOwner(app, owner).catch((error: unknown) =>
        showErrorMessage(
          trans.__('It can not be shown: %1', owner.name),
          error as Error
        )
      );
    };
    const panel = new SlicePanel(model, trans, { actions, open });
    app.shell.add(panel, 'right', { rank: 900 });
    labShell?.layoutModified.connect(() => {
      model.isShown = panel.isVisible;
    });

    const notices = new Notices(model, actions, trans, show);
    const status = new SliceStatus(model, trans, show);
    let wantsStatus = true;
    statusBar?.registerStatusItem('jupyter-vgpu:status', {
      item: status,
      align: 'right',
      rank: 900,
      isActive: () => wantsStatus && model.usage?.kind === 'slice',
      activeStateChanged: model.stateChanged
    });
    const apply = (loaded: ISettingRegistry.ISettings): void => {
      notices.enabled = loaded.get('notifications').composite as boolean;
      setUnits(loaded.get('units').composite as Units);
      model.seconds = loaded.get('seconds').composite as number;
      wantsStatus = loaded.get('statusBar').composite as boolean;
      model.warnAt = loaded.get('warnAt').composite as number; // and all is drawn anew
    };
    settings
      ?.load(PLUGIN)
      .then(loaded => {
        apply(loaded);
        loaded.changed.connect(apply);
      })
      .catch(() => {
        // the defaults hold
      });

    app.commands.addCommand(CommandIDs.show, {
      label: trans.__('Show GPU Slice'),
      describedBy: { args: { type: 'object', properties: {} } },
      execute: () => {
        app.shell.activateById(panel.id);
      }
    });
    palette?.addItem({
      command: CommandIDs.show,
      category: trans.__('GPU')
    });
  }
};

/** Show the document, console or terminal. */
async function openOwner(app: JupyterFrontEnd, owner: IOwner): Promise<void> {
  if (owner.kind === 'terminal') {
    await app.commands.execute('terminal:open', { name: owner.id });
  } else if (owner.kind === 'console') {
    await app.commands.execute('console:open', { path: owner.path });
  } else {
    await app.commands.execute('docmanager:open', { path: owner.path });
  }
}

export default plugin;
