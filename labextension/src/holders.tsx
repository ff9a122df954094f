import { TranslationBundle } from '@jupyterlab/translation';
import {
  closeIcon,
  LabIcon,
  refreshIcon,
  stopIcon
} from '@jupyterlab/ui-components';
import * as React from 'react';

import { Action, Actions } from './actions';
import { formatBytes, formatPercent } from './format';
import { identity } from './incidents';
import { IHolder, IOwner } from './request';

const ICONS: Record<Action, LabIcon> = {
  interrupt: stopIcon,
  restart: refreshIcon,
  shutdown: closeIcon
};

/** What can be asked for by a row. */
export interface IRowActions {
  actions: Actions;
  open: (owner: IOwner) => void;
}

/**
 * A row for each that uses the GPU, and for each kernel that could; the largest
 * first, but for rows that somebody points at: these stay where they are.
 */
export function Holders(
  props: {
    holders: IHolder[];
    now: number;
    trans: TranslationBundle;
  } & IRowActions
): React.ReactElement {
  const { holders, trans, ...more } = props;
  const [kept, keep] = React.useState<string[]>([]);
  const place = (holder: IHolder): number => {
    const at = kept.indexOf(identity(holder));
    return at < 0 ? kept.length : at;
  };
  const rows = [...holders].sort((a, b) => place(a) - place(b));
  const hold = (): void => {
    keep(rows.map(identity));
  };
  const release = (): void => {
    keep([]);
  };
  return (
    <>
      {holders.every(holder => holder.memory === 0) && (
        <p className="jp-vgpu-Note">{trans.__('Nobody uses the GPU now.')}</p>
      )}
      <ul
        className="jp-vgpu-Holders"
        onPointerEnter={hold}
        onPointerLeave={release}
        onFocus={hold}
        onBlur={release}
      >
        {rows.map(holder => (
          <Row key={identity(holder)} holder={holder} trans={trans} {...more} />
        ))}
      </ul>
    </>
  );
}

function Row(
  props: {
    holder: IHolder;
    now: number;
    trans: TranslationBundle;
  } & IRowActions
): React.ReactElement {
  const { holder, now, trans, actions, open } = props;
  return (
    <li>
      <Name holder={holder} open={open} />
      <span>{holder.memory > 0 ? formatBytes(holder.memory) : ''}</span>
      <small>{activityText(holder, now, trans)}</small>
      <span className="jp-vgpu-Buttons">
        {Actions.of(holder).map(action => (
          <ActionButton
            key={action}
            icon={ICONS[action]}
            label={actions.label(action, holder)}
            run={() => actions.run(action, holder)}
          />
        ))}
      </span>
    </li>
  );
}

function Name(props: {
  holder: IHolder;
  open: (owner: IOwner) => void;
}): React.ReactElement {
  const { holder, open } = props;
  if (holder.id === null || holder.kind === 'kernel') {
    return <span>{holder.name}</span>;
  }
  return (
    <button
      type="button"
      className="jp-vgpu-Link"
      title={holder.path ?? holder.name}
      onClick={() => {
        open(holder);
      }}
    >
      {holder.name}
    </button>
  );
}

function ActionButton(props: {
  icon: LabIcon;
  label: string;
  run: () => Promise<unknown>;
}): React.ReactElement {
  return (
    <button
      type="button"
      title={props.label}
      aria-label={props.label}
      onClick={() => {
        void props.run();
      }}
    >
      <props.icon.react tag="span" width="14px" height="14px" />
    </button>
  );
}

/** Working now, or since when it rests. */
function activityText(
  holder: IHolder,
  now: number,
  trans: TranslationBundle
): string {
  if (holder.memory === 0) {
    return trans.__('does not use the GPU');
  }
  if (holder.busy) {
    return holder.cores > 0
      ? trans.__('works, %1 of the GPU', formatPercent(holder.cores))
      : trans.__('works');
  }
  if (holder.last_active === null) {
    return trans.__('has not worked yet');
  }
  const minutes = Math.floor((now - holder.last_active) / 60);
  return minutes < 1
    ? trans.__('rests')
    : trans._n('rests for a minute', 'rests for %1 minutes', minutes, minutes);
}
