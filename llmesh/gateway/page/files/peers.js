// The peers as a graph around this node: near those in a session, far those that are only known.

import { brief, byId, el, svg } from './dom.js'
import { say } from './words.js'

const MOST = 48
const RINGS = { connected: 0.62, known: 1, down: 1 }
const FEW = 6
const LABEL = 42 // pixels of width that a label takes
let [WIDTH, HEIGHT] = [640, 330]
const calm = matchMedia('(prefers-reduced-motion: reduce)')
let places = new Map()

export function showPeers(mesh) {
  if (!mesh.status) return
  const peers = mesh.peers.filter(({ peer_id: id }) => !mesh.isOwn(id)).sort((a, b) => (a.peer_id < b.peer_id ? -1 : 1))
  const drawn = peers.slice(0, MOST)
  WIDTH = Math.max(240, byId('graph').clientWidth)
  HEIGHT = drawn.length > FEW ? 380 : 230
  places = new Map(drawn.map((peer, index) => [peer.peer_id, place(peer, index, drawn.length)]))
  places.set(mesh.status.node_id, [WIDTH / 2, HEIGHT / 2])
  const focused = document.activeElement?.closest?.('.node')?.dataset.peer
  const drawing = svg('svg', { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: 'group', 'aria-label': say('graphOf') },
    ...drawn.map((peer) => edge(places.get(peer.peer_id), peer.state)),
    ...drawn.map((peer) => dot(peer, places.get(peer.peer_id), drawn.length * LABEL < WIDTH || peer.state === 'connected')),
    self(mesh.status.node_id))
  byId('graph').replaceChildren(drawing)
  const kept = focused && [...drawing.querySelectorAll('.node')].find((node) => node.dataset.peer === focused)
  if (kept) kept.focus()
  else byId('peer-facts').replaceChildren(hint(peers.length, drawn.length))
}

/** A spark from this node to whoever answered, or from a peer that was served. */
export function pulse(mesh, provider) {
  const [from, to] = [places.get(mesh.status?.node_id), places.get(provider)]
  const drawing = byId('graph').firstChild
  if (!from || !to || from === to || !drawing || calm.matches) return
  const spark = svg('circle', { class: 'pulse', r: 5, cx: from[0], cy: from[1] })
  drawing.append(spark)
  const frames = [{ transform: 'translate(0, 0)' }, { transform: `translate(${to[0] - from[0]}px, ${to[1] - from[1]}px)` }]
  spark.animate(frames, { duration: 700, easing: 'ease-in-out' }).finished.finally(() => spark.remove())
}

function place({ state }, index, count) {
  const angle = (2 * Math.PI * index) / count + 0.35
  const far = RINGS[state]
  return [WIDTH / 2 + far * (WIDTH / 2 - 45) * Math.cos(angle), HEIGHT / 2 + far * (HEIGHT / 2 - 45) * Math.sin(angle)]
}

const edge = ([x, y], state) => svg('line', { class: `edge ${state}`, x1: WIDTH / 2, y1: HEIGHT / 2, x2: x, y2: y })

function dot(peer, [x, y], labelled) {
  const words = describe(peer)
  const tell = () => byId('peer-facts').replaceChildren(el('code', {}, peer.peer_id), ` — ${words}`)
  const size = Math.min(20, 9 + 2 * peer.models)
  return svg('g', { class: `node ${peer.state}`, tabindex: 0, role: 'img', 'aria-label': `${peer.peer_id}: ${words}`, 'data-peer': peer.peer_id, onfocus: tell, onmouseenter: tell, onclick: tell },
    svg('circle', { cx: x, cy: y, r: size }),
    labelled && svg('text', { x, y: y < HEIGHT / 2 ? y - size - 5 : y + size + 13, 'text-anchor': 'middle' }, peer.peer_id.slice(-6)))
}

function self(id) {
  const [x, y] = [WIDTH / 2, HEIGHT / 2]
  return svg('g', { class: 'node self', role: 'img', 'aria-label': `${say('thisNode')}: ${id}` },
    svg('circle', { cx: x, cy: y, r: 17 }),
    svg('text', { x, y: y + 32, 'text-anchor': 'middle' }, say('thisNode')))
}

function describe(peer) {
  const ping = peer.latency_ms === null ? '' : `, ping ${Math.ceil(peer.latency_ms)} ms`
  return `${say(`state_${peer.state}`)}, ${say('models')}: ${peer.models}, ${say('stake')}: ${peer.stake} MESH${ping}`
}

function hint(all, drawn) {
  if (!all) return say('noPeers')
  return all > drawn ? `${say('peerHint')} +${all - drawn} ${say('morePeers')}` : say('peerHint')
}

export const named = (mesh, peer) => (mesh.isOwn(peer) ? say('thisOne') : brief(peer))
