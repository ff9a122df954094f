import {
  ILabShell,
  JupyterFrontEnd,
  JupyterFrontEndPlugin
} from '@jupyterlab/application';
import { ITranslator, nullTranslator } from '@jupyterlab/translation';

import { SliceModel } from './model';
import { SlicePanel } from './panel';

/** Commands of this extension. */
export namespace CommandIDs {
  export const show = 'vgpu:show';
}

const plugin: JupyterFrontEndPlugin<void> = {
  id: 'jupyter-vgpu:panel',
  description: 'Shows the quota and usage of this server’s slice of a GPU.',
  autoStart: true,
  optional: [ITranslator, ILabShell],
  activate: (
    app: JupyterFrontEnd,
    translator: ITranslator | null,
    labShell: ILabShell | null
  ) => {
    const trans = (translator ?? nullTranslator).load('jupyter_vgpu');
    const model = new SliceModel(app.serviceManager.serverSettings);
    const panel = new SlicePanel(model, trans, path => {
      void app.commands.execute('docmanager:open', { path });
    });
    app.shell.add(panel, 'right', { rank: 900 });
    const watch = (): void => {
      model.isShown = panel.isVisible;
    };
    labShell?.layoutModified.connect(watch);
    app.commands.addCommand(CommandIDs.show, {
      label: trans.__('Show GPU Slice'),
      describedBy: { args: { type: 'object', properties: {} } },
      execute: () => {
        app.shell.activateById(panel.id);
      }
    });
  }
};

export default plugin;
