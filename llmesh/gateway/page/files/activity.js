// What happens, as it happens: requests, latency and queue over ten minutes, and a log of events.

import { lineChart } from './chart.js'
import { brief, byId, el, mesh as inMesh } from './dom.js'
import { named } from './peers.js'
import { say } from './words.js'

const SPAN = 600 // seconds
const STEP = 20
const MOST = 100

export class Activity {
  #mesh
  #answers = [] // [when, milliseconds]
  #queue = [] // [when, requests]
  #opened = Date.now()
  #log = []

  constructor(mesh) {
    this.#mesh = mesh
  }

  note(told) {
    if (told.event === 'inference') this.#answers.push([Date.now(), told.data.latency_ms])
    if (told.dropped) this.#log.unshift([new Date(), { event: 'dropped', data: { count: told.dropped } }])
    this.#log.unshift([new Date(), told])
    this.#log.length = Math.min(this.#log.length, MOST)
    this.#showNewest()
  }

  sample() {
    const calls = this.#mesh.status?.workers.reduce((sum, worker) => sum + worker.calls, 0)
    if (calls !== undefined) this.#queue.push([Date.now(), calls])
  }

  show() {
    const oldest = Date.now() - 1000 * SPAN
    this.#answers = this.#answers.filter(([when]) => when > oldest)
    this.#queue = this.#queue.filter(([when]) => when > oldest)
    const span = Math.min(SPAN, 60 * Math.ceil((Date.now() - this.#opened) / 60_000))
    const begin = say('minutesAgo', { minutes: span / 60 })
    const rates = this.#rates(span)
    const latencies = this.#answers.map(([when, value]) => [ago(when), value])
    const queue = this.#queue.map(([when, value]) => [ago(when), value])
    const last = (points, unit = '') => (points.length ? `${Math.round(points.at(-1)[1])}${unit}` : '—')
    byId('charts').replaceChildren(
      lineChart(say('requests'), last(rates), rates, span, begin),
      lineChart(say('latencyMs'), last(latencies), latencies, span, begin),
      lineChart(say('queue'), last(queue), queue, span, begin))
  }

  /** The whole log again, as in another language. */
  showLog() {
    byId('events').replaceChildren(...this.#log.map((entry) => this.#line(entry)))
    if (!this.#log.length) byId('events').append(el('li', { class: 'hint' }, say('nothingYet')))
  }

  #showNewest() {
    const list = byId('events')
    if (list.firstChild?.className === 'hint') list.replaceChildren()
    list.prepend(this.#line(this.#log[0]))
    while (list.children.length > MOST) list.lastChild.remove()
  }

  #line([when, told]) {
    const failed = told.event === 'inference' && told.data.error
    return el('li', failed ? { class: 'failed' } : {}, el('time', { datetime: when.toISOString() }, when.toLocaleTimeString()), this.#words(told))
  }

  #words({ event, data }) {
    const model = data.name ?? data.model?.split('@')[0] ?? this.#nameOf(data.model_id)
    const fee = data.fee !== undefined && inMesh(data.fee, say('free'))
    const values = { ...data, name: model, model, fee, ms: Math.round(data.latency_ms), provider: data.provider && named(this.#mesh, data.provider), peer: brief(data.peer_id) }
    if (event === 'inference' && data.error) return say('ev_failed', { ...values, error: `${data.error.name}: ${data.error.message}` })
    if (event === 'inference') return say(data.served === 'peer' ? 'ev_served' : 'ev_answered', values)
    if (event === 'transfer') return say('ev_transfer', { ...values, percent: Math.floor((100 * data.done) / Math.max(1, data.total)) })
    if (event === 'model_deployed') return say('ev_deployed', values)
    return say(event === 'dropped' ? 'ev_dropped' : `ev_${data.change}`, values)
  }

  #nameOf(id) {
    return this.#mesh.offers.find((offer) => offer.model_id === id)?.name ?? brief(id)
  }

  /** Requests in the minute before each step since the page was opened. */
  #rates(span) {
    const since = Math.min(span, (Date.now() - this.#opened) / 1000)
    const ages = this.#answers.map(([when]) => ago(when))
    const steps = Array.from({ length: Math.ceil(since / STEP) + 1 }, (_, index) => Math.min(span, index * STEP))
    return steps.map((then) => [then, ages.filter((age) => age >= then && age < then + 60).length]).reverse()
  }
}

const ago = (when) => (Date.now() - when) / 1000
