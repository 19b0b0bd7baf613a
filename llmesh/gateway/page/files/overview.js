// What this node is, at a glance.

import { brief, byId, facts, mesh } from './dom.js'
import { say, translated } from './words.js'

export function showOverview({ status }) {
  if (!status) return
  byId('node-id').textContent = status.node_id
  const { swarm } = status
  const reachable = { true: say('yes'), false: say('no'), null: say('unknown') }[status.reachable]
  byId('tiles').replaceChildren(...facts([
    [say('peers'), status.peers],
    [say('own'), status.models],
    [say('balance'), swarm && mesh(swarm.balance)],
    [say('stake'), mesh(status.stake)],
    [say('earnings'), mesh(status.earnings)],
    [say('uptime'), duration(status.uptime)],
    [say('reachable'), reachable],
    [say('sandbox'), translated(status.sandbox)],
    [say('version'), status.version],
    [say('swarm'), swarm && brief(swarm.id)],
    [say('alarm'), swarm?.alarm, 'warn'],
    ...status.transfers.map(({ done, total, model_id }) => [
      `${say('fetching')} ${brief(model_id)}`, `${Math.floor((100 * done) / Math.max(1, total))} %`,
    ]),
  ], true))
}

export async function copyId() {
  if (!navigator.clipboard) return getSelection().selectAllChildren(byId('node-id')) // no secure context
  await navigator.clipboard.writeText(byId('node-id').textContent)
  byId('copy-id').textContent = say('copied')
}

function duration(seconds) {
  const [days, hours, minutes] = [seconds / 86_400, (seconds / 3600) % 24, (seconds / 60) % 60].map(Math.floor)
  if (days) return `${unit(days, 'day')} ${unit(hours, 'hour')}`
  if (hours) return `${unit(hours, 'hour')} ${unit(minutes, 'minute')}`
  return minutes ? unit(minutes, 'minute') : unit(Math.floor(seconds), 'second')
}

function unit(count, name) {
  const style = { style: 'unit', unit: name, unitDisplay: 'short' }
  return new Intl.NumberFormat(document.documentElement.lang, style).format(count)
}
