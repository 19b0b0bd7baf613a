// The models on the mesh: one row for each, whoever offers it.

import { byId, el, mesh as inMesh } from './dom.js'
import { say, translated } from './words.js'

/** Models by id, the cheapest offer of each first. */
export function groups(offers) {
  const found = new Map()
  for (const offer of [...offers].sort((a, b) => a.fee - b.fee)) {
    const same = found.get(offer.model_id)
    if (same) same.push(offer)
    else found.set(offer.model_id, [offer])
  }
  return [...found.values()].sort(([a], [b]) => (a.name < b.name ? -1 : a.name > b.name ? 1 : 0))
}

export function showModels(mesh, onTry) {
  const wanted = byId('filter').value.trim().toLowerCase()
  const shown = groups(mesh.offers).filter((offers) => offers.some(({ name }) => name.toLowerCase().includes(wanted)))
  byId('offers').replaceChildren(...shown.map((offers) => row(mesh, offers, onTry)))
  byId('no-offers').hidden = shown.length > 0
  byId('no-offers').textContent = say(mesh.offers.length ? 'noMatch' : 'noModels')
}

function row(mesh, offers, onTry) {
  const [offer] = offers
  const here = offers.some(({ provider }) => mesh.isOwn(provider))
  const cell = (title, text, kind) => el('td', { 'data-title': `${say(title)}:`, class: kind }, text)
  return el('tr', {},
    el('th', { scope: 'row' }, offer.name, here && el('span', { class: 'tag' }, say('here')), el('small', {}, `${offer.version} · ${offer.licence || offer.model_id.slice(0, 12)}`)),
    cell('task', translated(offer.task)),
    cell('price', price(offers), 'number'),
    cell('providers', String(new Set(offers.map(({ provider }) => provider)).size), 'number'),
    cell('latency', latency(mesh, offers), 'number'),
    el('td', {}, el('button', { type: 'button', onclick: () => onTry(offer), 'aria-label': `${say('try')} ${offer.name}` }, say('try'))))
}

function price(offers) {
  const [least, most] = [offers[0].fee, offers.at(-1).fee]
  if (most === 0) return say('free')
  return least === most ? inMesh(least) : `${least} – ${inMesh(most)}`
}

/** Of the latest answer, or else the ping of the nearest provider. */
function latency(mesh, offers) {
  const answered = mesh.latencies.get(offers[0].model_id)
  if (answered !== undefined) return `${Math.round(answered)} ms`
  const pings = mesh.peers
    .filter(({ peer_id: peer, latency_ms: ping }) => ping !== null && offers.some(({ provider }) => provider === peer))
    .map(({ latency_ms: ping }) => ping)
  return pings.length ? `ping ${Math.ceil(Math.min(...pings))} ms` : '—'
}
