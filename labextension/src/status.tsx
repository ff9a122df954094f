import { TranslationBundle } from '@jupyterlab/translation';
import { VDomRenderer } from '@jupyterlab/ui-components';
import * as React from 'react';

import { formatBytes, formatPercent } from './format';
import { levelOf } from './level';
import { SliceModel } from './model';

/** Memory and compute in the status bar; a click shows the panel. */
export class SliceStatus extends VDomRenderer<SliceModel> {
  constructor(model: SliceModel, trans: TranslationBundle, show: () => void) {
    super(model);
    this._trans = trans;
    this._show = show;
    this.addClass('jp-vgpu-Status');
  }

  protected render(): React.ReactElement | null {
    const usage = this.model.usage;
    if (usage?.kind !== 'slice') {
      return null;
    }
    const text = this._trans.__(
      'GPU %1 of %2, %3',
      formatBytes(usage.usage.memory),
      formatBytes(usage.quota.memory),
      formatPercent(usage.usage.cores)
    );
    const level = levelOf(
      usage.usage.memory / usage.quota.memory,
      this.model.warnAt
    );
    return (
      <button
        type="button"
        data-level={level}
        title={this._trans.__('Show GPU Slice')}
        onClick={this._show}
      >
        {text}
      </button>
    );
  }

  private _trans: TranslationBundle;
  private _show: () => void;
}
