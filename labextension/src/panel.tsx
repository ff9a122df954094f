import { TranslationBundle } from '@jupyterlab/translation';
import { LabIcon, VDomRenderer } from '@jupyterlab/ui-components';
import * as React from 'react';

import { formatBytes, formatPercent } from './format';
import { SliceModel } from './model';
import { IHolder, INone, ISlice } from './request';

const gpuIcon = new LabIcon({
  name: 'jupyter-vgpu:gpu',
  svgstr: `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24" width="16">
  <path class="jp-icon3" fill="#616161" d="M3 5h18a1 1 0 0 1 1 1v10a1 1 0 0 1-1 1h-2v2h-2v-2H9v2H7v-2H3a1 1 0 0 1-1-1V6a1 1 0 0 1 1-1zm1 2v8h16V7H4zm5 1.5a2.5 2.5 0 1 1 0 5 2.5 2.5 0 0 1 0-5zm6.5 0a2.5 2.5 0 1 1 0 5 2.5 2.5 0 0 1 0-5z"/></svg>`
});

/** The sidebar panel. */
export class SlicePanel extends VDomRenderer<SliceModel> {
  constructor(
    model: SliceModel,
    trans: TranslationBundle,
    open: (path: string) => void
  ) {
    super(model);
    this._trans = trans;
    this._open = open;
    this.id = 'jupyter-vgpu-panel';
    this.title.icon = gpuIcon;
    this.title.caption = trans.__('GPU slice');
    this.addClass('jp-vgpu-Panel');
    this.node.setAttribute('role', 'region');
    this.node.setAttribute('aria-label', trans.__('GPU slice'));
  }

  protected onAfterShow(): void {
    this.model.isShown = true;
  }

  protected onAfterHide(): void {
    this.model.isShown = false;
  }

  protected render(): React.ReactElement {
    const usage = this.model.usage;
    if (usage === null) {
      return <p className="jp-vgpu-Note">{this._trans.__('Asking …')}</p>;
    }
    return usage.kind === 'slice' ? (
      <Slice slice={usage} trans={this._trans} open={this._open} />
    ) : (
      <Nothing none={usage} trans={this._trans} />
    );
  }

  private _trans: TranslationBundle;
  private _open: (path: string) => void;
}

function Nothing(props: {
  none: INone;
  trans: TranslationBundle;
}): React.ReactElement {
  const { none, trans } = props;
  const titles: Record<INone['reason'], string> = {
    'no-slice': trans.__('No GPU'),
    'not-under-hub': trans.__('No GPU'),
    'daemon-away': trans.__('No numbers now'),
    'server-away': trans.__('No numbers now')
  };
  return (
    <div className="jp-vgpu-Note">
      <h2>{titles[none.reason]}</h2>
      <p>{none.message}</p>
    </div>
  );
}

function Slice(props: {
  slice: ISlice;
  trans: TranslationBundle;
  open: (path: string) => void;
}): React.ReactElement {
  const { slice, trans, open } = props;
  const { quota, usage } = slice;
  return (
    <>
      <h2>{slice.gpu.name}</h2>
      <Bar
        label={trans.__('Memory')}
        value={usage.memory}
        limit={quota.memory}
        text={trans.__(
          '%1 of %2',
          formatBytes(usage.memory),
          formatBytes(quota.memory)
        )}
        warns={true}
      />
      <Bar
        label={trans.__('Compute')}
        value={usage.cores}
        limit={quota.cores}
        text={trans.__(
          '%1 of %2',
          formatPercent(usage.cores),
          formatPercent(quota.cores)
        )}
        warns={false}
      />
      {usage.memory_over_by > 0 && (
        <p role="status">
          {trans.__(
            'Over the quota by %1: nothing new can be allocated.',
            formatBytes(usage.memory_over_by)
          )}
        </p>
      )}
      <h3>{trans.__('Who holds it')}</h3>
      <Holders holders={slice.holders} trans={trans} open={open} />
      <p className="jp-vgpu-Tier">{tierText(slice, trans)}</p>
      {slice.outside.length > 0 && (
        <p role="status">
          {trans._n(
            'One program goes round the shim. Its memory counts, and above the quota it is ended.',
            '%1 programs go round the shim. Their memory counts, and above the quota they are ended.',
            slice.outside.length
          )}
        </p>
      )}
    </>
  );
}

function Bar(props: {
  label: string;
  value: number;
  limit: number;
  text: string;
  /** Whether coming near the limit is a trouble: using all of one's compute is not. */
  warns: boolean;
}): React.ReactElement {
  const percent = Math.min(100, (100 * props.value) / props.limit);
  const level =
    props.warns && percent >= 95
      ? 'full'
      : props.warns && percent >= 80
        ? 'high'
        : 'normal';
  return (
    <div className="jp-vgpu-Usage">
      <div className="jp-vgpu-Usage-label">
        <span>{props.label}</span>
        <span>{props.text}</span>
      </div>
      <div
        className="jp-vgpu-Bar"
        role="meter"
        aria-label={props.label}
        aria-valuemin={0}
        aria-valuemax={100}
        aria-valuenow={Math.round(percent)}
        aria-valuetext={props.text}
      >
        <div
          className="jp-vgpu-Bar-fill"
          data-level={level}
          style={{ width: `${percent}%` }}
        />
      </div>
    </div>
  );
}

function Holders(props: {
  holders: IHolder[];
  trans: TranslationBundle;
  open: (path: string) => void;
}): React.ReactElement {
  const { holders, trans, open } = props;
  if (holders.length === 0) {
    return (
      <p className="jp-vgpu-Note">{trans.__('Nobody uses the GPU now.')}</p>
    );
  }
  return (
    <ul className="jp-vgpu-Holders">
      {holders.map(holder => (
        <li key={`${holder.kind} ${holder.path ?? holder.name}`}>
          <HolderName holder={holder} open={open} />
          <span>{formatBytes(holder.memory)}</span>
        </li>
      ))}
    </ul>
  );
}

function HolderName(props: {
  holder: IHolder;
  open: (path: string) => void;
}): React.ReactElement {
  const { path, name } = props.holder;
  if (path === null) {
    return <span>{name}</span>;
  }
  return (
    <button
      type="button"
      title={path}
      onClick={() => {
        props.open(path);
      }}
    >
      {name}
    </button>
  );
}

function tierText(slice: ISlice, trans: TranslationBundle): string {
  const policy =
    slice.quota.policy === 'hard'
      ? trans.__('never more than your share')
      : trans.__('your share, and more while the GPU is idle');
  switch (slice.tier) {
    case 'guard':
      return trans.__('Held by the guard: %1.', policy);
    case 'shim':
      return trans.__(
        'Held by the shim, for programs that use CUDA as usual: %1.',
        policy
      );
    case 'none':
      return trans.__('No program has used the GPU in this slice yet.');
  }
}
