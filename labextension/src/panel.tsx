import { TranslationBundle } from '@jupyterlab/translation';
import { LabIcon, VDomRenderer } from '@jupyterlab/ui-components';
import * as React from 'react';

import { formatBytes, formatPercent } from './format';
import { Holders, IRowActions } from './holders';
import { levelOf } from './level';
import { HISTORY_S, ISample, SliceModel } from './model';
import { INone, IQueue, IRefusal, ISlice } from './request';
import { Trend } from './trend';
import {
  adviceText,
  hoursText,
  maintenanceText,
  noneText,
  queueText,
  refusalText,
  tierText,
  wayText
} from './words';

const gpuIcon = new LabIcon({
  name: 'jupyter-vgpu:gpu',
  svgstr: `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24" width="16">
  <path class="jp-icon3" fill="#616161" d="M3 5h18a1 1 0 0 1 1 1v10a1 1 0 0 1-1 1h-2v2h-2v-2H9v2H7v-2H3a1 1 0 0 1-1-1V6a1 1 0 0 1 1-1zm1 2v8h16V7H4zm5 1.5a2.5 2.5 0 1 1 0 5 2.5 2.5 0 0 1 0-5zm6.5 0a2.5 2.5 0 1 1 0 5 2.5 2.5 0 0 1 0-5z"/></svg>`
});

/** The sidebar panel. */
export class SlicePanel extends VDomRenderer<SliceModel> {
  constructor(model: SliceModel, trans: TranslationBundle, rows: IRowActions) {
    super(model);
    this._trans = trans;
    this._rows = rows;
    this.id = 'jupyter-vgpu-panel';
    this.title.icon = gpuIcon;
    this.title.caption = trans.__('GPU slice');
    this.addClass('jp-vgpu-Panel');
    this.node.setAttribute('role', 'region');
    this.node.tabIndex = 0; // what scrolls is reached by the keyboard
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
      <Slice
        slice={usage}
        history={this.model.history}
        warnAt={this.model.warnAt}
        trans={this._trans}
        rows={this._rows}
      />
    ) : (
      <Nothing none={usage} trans={this._trans} />
    );
  }

  private _trans: TranslationBundle;
  private _rows: IRowActions;
}

function Nothing(props: {
  none: INone;
  trans: TranslationBundle;
}): React.ReactElement {
  const { none, trans } = props;
  const titles: Record<INone['reason'], string> = {
    'no-slice': trans.__('No GPU'),
    'no-quota': trans.__('No GPU'),
    'not-under-hub': trans.__('No GPU'),
    'daemon-away': trans.__('No numbers now'),
    'server-away': trans.__('No numbers now')
  };
  return (
    <div className="jp-vgpu-Note">
      <h2>{titles[none.reason]}</h2>
      <p>{noneText(none, trans)}</p>
      <Queue queue={none.queue ?? null} trans={trans} />
    </div>
  );
}

function Queue(props: {
  queue: IQueue | null;
  trans: TranslationBundle;
}): React.ReactElement | null {
  const { queue, trans } = props;
  return (
    queue && (
      <p role="status" className="jp-vgpu-Queue">
        {queueText(queue, trans)}{' '}
        {queue.url && (
          <a href={queue.url} target="_blank" rel="noreferrer">
            {trans.__('To the Queue')}
          </a>
        )}
      </p>
    )
  );
}

function Slice(props: {
  slice: ISlice;
  history: readonly ISample[];
  warnAt: number;
  trans: TranslationBundle;
  rows: IRowActions;
}): React.ReactElement {
  const { slice, history, warnAt, trans, rows } = props;
  const { quota, usage } = slice;
  return (
    <>
      <h2>{slice.gpu.name}</h2>
      {slice.maintenance && (
        <p role="status" className="jp-vgpu-Maintenance">
          {maintenanceText(slice.maintenance, trans)}
        </p>
      )}
      <Queue queue={slice.queue} trans={trans} />
      <Usage
        label={trans.__('Memory')}
        value={usage.memory}
        limit={quota.memory}
        warnAt={warnAt}
        format={formatBytes}
        points={history.map(({ time, memory }) => ({ time, value: memory }))}
        trans={trans}
      />
      <Usage
        label={trans.__('Compute')}
        value={usage.cores}
        limit={quota.cores}
        warnAt={null}
        format={formatPercent}
        points={history.map(({ time, cores }) => ({ time, value: cores }))}
        trans={trans}
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
      <Holders
        holders={slice.holders}
        now={slice.now}
        trans={trans}
        {...rows}
      />
      <Refusals
        refusals={slice.refusals.recent}
        free={quota.memory - usage.memory}
        trans={trans}
        {...rows}
      />
      {slice.hours && (
        <>
          <h3>{trans.__('GPU-hours')}</h3>
          <p data-state={slice.hours.state} className="jp-vgpu-Hours">
            {hoursText(slice.hours, trans)}
          </p>
        </>
      )}
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

/** A bar with its trend. warnAt null: all of it may be used without a trouble. */
function Usage(props: {
  label: string;
  value: number;
  limit: number;
  warnAt: number | null;
  format: (value: number) => string;
  points: { time: number; value: number }[];
  trans: TranslationBundle;
}): React.ReactElement {
  const { label, value, limit, warnAt, format, points, trans } = props;
  const text = trans.__('%1 of %2', format(value), format(limit));
  const percent = Math.min(100, (100 * value) / limit);
  const level = warnAt === null ? 'normal' : levelOf(value / limit, warnAt);
  const most = format(Math.max(0, ...points.map(point => point.value)));
  return (
    <div className="jp-vgpu-Usage">
      <div className="jp-vgpu-Usage-label">
        <span>{label}</span>
        <span>{text}</span>
      </div>
      <div
        className="jp-vgpu-Bar"
        role="meter"
        aria-label={label}
        aria-valuemin={0}
        aria-valuemax={100}
        aria-valuenow={Math.round(percent)}
        aria-valuetext={text}
      >
        <div
          className="jp-vgpu-Bar-fill"
          data-level={level}
          style={{ width: `${percent}%` }}
        />
      </div>
      <Trend
        points={points}
        limit={limit}
        seconds={HISTORY_S}
        label={trans.__(
          '%1 over the last two minutes: at most %2',
          label,
          most
        )}
      />
    </div>
  );
}

/** The last refused allocations, newest first; ways out of it while there is no room for the last. free: bytes. */
function Refusals(
  props: {
    refusals: IRefusal[];
    free: number;
    trans: TranslationBundle;
  } & IRowActions
): React.ReactElement | null {
  const { refusals, free, trans, actions } = props;
  if (refusals.length === 0) {
    return null;
  }
  const last = refusals[refusals.length - 1];
  return (
    <>
      <h3>{trans.__('Out of memory')}</h3>
      <p>{adviceText(last, free, trans)}</p>
      <p className="jp-vgpu-Ways">
        {(last.bytes > free ? last.ways : []).map(way => (
          <button
            key={`${way.action} ${way.id}`}
            type="button"
            onClick={() => {
              void actions.run(way.action, way);
            }}
          >
            {wayText(way, trans)}
          </button>
        ))}
      </p>
      <ul className="jp-vgpu-Refusals">
        {[...refusals].reverse().map(refusal => (
          <li key={refusal.first}>
            <time dateTime={new Date(refusal.time * 1000).toISOString()}>
              {new Date(refusal.time * 1000).toLocaleTimeString()}
            </time>{' '}
            {refusalText(refusal, trans)}
            {refusal.times > 1 &&
              ` ${trans.__('Tried %1 times.', refusal.times)}`}
          </li>
        ))}
      </ul>
    </>
  );
}
