// MeshClient: an LLMESH node's gateway for browsers and Node 20.3 or later, without dependencies.
// The types are in llmesh.d.ts.

import { MeshError, fromProblem, isPassing, ownError, read } from './errors.js'
import { Frames, InferenceStream, Leaving, serverSent, sleep } from './streams.js'
import { sendByFetch, sendByXhr } from './upload.js'

export { MeshError }

const ANSWER = 10_000 // milliseconds for what a node knows by itself
const MARGIN = 5_000 // beyond an inference's own timeout: the node tells best what went wrong
const SHORTEST = 200 // milliseconds between two tries to connect again; they double
const LONGEST = 30_000
const CUT = 'The connection broke before the end.'
const EVENTS = ['inference', 'peer_update', 'model_announce', 'transfer', 'model_deployed']

/** A client of one node; it holds no connection of its own between calls. */
export class MeshClient {
  #key

  constructor({ url = defaultUrl(), key } = {}) {
    const parsed = new URL(url)
    if (!/^https?:$/.test(parsed.protocol)) throw new TypeError(`${url} is not the URL of a gateway.`)
    this.url = url.replace(/\/+$/, '')
    this.#key = key
  }

  status(options) {
    return this.#get('/api/v1/status', {}, options)
  }

  models(options) {
    return this.searchModels({ limit: 1000, ...options })
  }

  async searchModels({ name, maxFee, limit, signal } = {}) {
    return (await this.#get('/api/v1/models', { name, max_fee: maxFee, limit }, { signal })).models
  }

  model(id, options) {
    return this.#get(`/api/v1/models/${encodeURIComponent(id)}`, {}, options)
  }

  async removeModel(id, options) {
    await this.#call('DELETE', `/api/v1/models/${encodeURIComponent(id)}`, options)
  }

  async peers({ limit, signal } = {}) {
    return (await this.#get('/api/v1/peers', { limit }, { signal })).peers
  }

  receipt(requestId, options) {
    return this.#get(`/api/v1/receipts/${encodeURIComponent(requestId)}`, {}, options)
  }

  wallet({ days, signal } = {}) {
    return this.#get('/api/v1/wallet', { days }, { signal })
  }

  inference(request) {
    return this.#post('/api/v1/inference', asked(request), withTimeout(request))
  }

  plan(request) {
    return this.#post('/api/v1/inference', { ...asked(request), dry_run: true }, withTimeout(request))
  }

  async batch(requests, options = {}) {
    const timeout = Math.max(30, ...requests.map((each) => each.timeout ?? 30))
    const patience = timeout * 1000 * Math.max(1, Math.ceil(requests.length / 32)) + MARGIN
    const body = { requests: requests.map(asked) }
    const { results } = await this.#post('/api/v1/inference/batch', body, { patience, ...options })
    return results.map((row) => ('error' in row ? fromProblem(row.error) : row.result))
  }

  /** The text as it comes; leaving the loop, `return()` and the signal stop the work at the provider. */
  stream(request) {
    return new InferenceStream((leave) => this.#pieces(request, leave), request.signal)
  }

  /** What happens at the node.  A connection that breaks is opened again, however long that takes. */
  subscribe(names = [], { signal, onState = () => {} } = {}) {
    return new Leaving((leave) => this.#events(names, leave, onState), signal)
  }

  /** Bring the node a model: a Blob or File, bytes, or in Node a stream of bytes. */
  async deploy(data, metadata, { onProgress, signal, idempotencyKey } = {}) {
    const body = data instanceof Uint8Array || data instanceof ArrayBuffer ? new Blob([data]) : data
    const url = this.url + withQuery('/api/v1/models', metadata)
    const headers = this.#headers({
      'Content-Type': 'application/octet-stream',
      ...(idempotencyKey && { 'Idempotency-Key': idempotencyKey }),
    })
    const send = typeof XMLHttpRequest === 'function' && body instanceof Blob ? sendByXhr : sendByFetch
    return (await send(url, headers, body, onProgress ?? (() => {}), signal)).model_id
  }

  get webhooks() {
    const path = '/api/v1/webhooks'
    const one = (id, rest = '') => `${path}/${encodeURIComponent(id)}${rest}`
    return {
      list: async (options) => (await this.#get(path, {}, options)).webhooks,
      create: (webhook, options) => this.#post(path, webhook, options),
      get: (id, options) => this.#get(one(id), {}, options),
      remove: async (id, options) => void (await this.#call('DELETE', one(id), options)),
      ping: (id, options) => this.#call('POST', one(id, '/ping'), options),
      rotateSecret: (id, secret, options) => this.#post(one(id, '/secret'), secret ? { secret } : {}, options),
      deliveries: async (id, { state, limit, ...options } = {}) =>
        (await this.#get(one(id, '/deliveries'), { state, limit }, options)).deliveries,
      replay: (delivery, options) =>
        this.#call('POST', `/api/v1/deliveries/${encodeURIComponent(delivery)}/replay`, options),
    }
  }

  // --- one request ---------------------------------------------------------------------------------

  #headers(more = {}) {
    return this.#key ? { ...more, Authorization: `Bearer ${this.#key}` } : more
  }

  #get(path, query, { signal } = {}) {
    return this.#call('GET', withQuery(path, query), { signal })
  }

  #post(path, body, { signal, patience = ANSWER, idempotencyKey } = {}) {
    const headers = { 'Content-Type': 'application/json' }
    if (idempotencyKey) headers['Idempotency-Key'] = idempotencyKey
    return this.#call('POST', path, { signal, patience, headers, body: JSON.stringify(body) })
  }

  async #call(method, path, { signal, patience = ANSWER, headers = {}, body } = {}) {
    const late = AbortSignal.timeout(patience)
    const either = signal ? AbortSignal.any([signal, late]) : late
    try {
      const options = { method, headers: this.#headers(headers), body, signal: either }
      const answer = await fetch(this.url + path, options)
      return await read(answer)
    } catch (error) {
      throw this.#told(error, signal, late)
    }
  }

  #told(error, signal, late) {
    if (error instanceof MeshError || signal?.aborted) return error
    if (late?.aborted) return ownError('RequestTimeout', `The node at ${this.url} did not answer in time.`)
    return ownError('NodeUnreachable', `No node answers at ${this.url}.`)
  }

  // --- what comes piece by piece -------------------------------------------------------------------

  async *#frames(method, path, { headers, body, signal, late }) {
    const either = late ? AbortSignal.any([signal, late]) : signal
    let answer
    try {
      const more = this.#headers({ Accept: 'text/event-stream', ...headers })
      answer = await fetch(this.url + path, { method, headers: more, body, signal: either })
      if (!answer.ok) await read(answer)
      for await (const data of serverSent(answer.body)) yield JSON.parse(data)
    } catch (error) {
      const broken = answer && !either.aborted && !(error instanceof MeshError)
      throw broken ? ownError('NetworkError', CUT) : this.#told(error, signal, late)
    }
  }

  async *#pieces(request, leave) {
    const headers = { 'Content-Type': 'application/json' }
    const late = AbortSignal.timeout((request.timeout ?? 30) * 1000 + MARGIN)
    const options = { headers, body: JSON.stringify(asked(request)), signal: leave.signal, late }
    let ended = false
    for await (const frame of this.#frames('POST', '/api/v1/inference', options)) {
      if (frame.type === 'error') throw fromProblem(frame)
      ended = frame.type === 'completed'
      yield frame
    }
    if (!ended) throw ownError('NetworkError', CUT)
  }

  async *#events(names, leave, onState) {
    const { signal } = leave
    const opened = typeof WebSocket === 'function' ? this.#eventsBySocket : this.#eventsByHttp
    let pause = SHORTEST
    for (let first = true; !signal.aborted; first = false) {
      let rest = pause
      try {
        for await (const frame of opened.call(this, names, signal)) {
          if (frame.type === 'error') throw fromProblem(frame)
          pause = SHORTEST
          if (frame.type === 'subscribed') onState('connected')
          if (frame.type === 'event') yield { event: frame.event, data: frame.data, dropped: frame.dropped }
        }
      } catch (error) {
        if (signal.aborted) return
        if (!isPassing(error) || (first && error.name === 'NodeUnreachable')) throw error
        rest = Math.max(pause, (error.retryAfter ?? 0) * 1000)
      }
      onState('waiting')
      await sleep(rest * (0.75 + Math.random() / 2), signal)
      pause = Math.min(2 * pause, LONGEST)
    }
  }

  #eventsByHttp(names, signal) {
    return this.#frames('GET', withQuery('/api/v1/events', { names: names.join(',') || undefined }), { signal })
  }

  async *#eventsBySocket(names, signal) {
    const socket = new WebSocket(this.url.replace(/^http/, 'ws') + '/ws')
    const frames = new Frames()
    const leave = () => frames.end(signal.reason)
    signal.addEventListener('abort', leave)
    socket.onopen = () => {
      if (this.#key) socket.send(JSON.stringify({ type: 'auth', key: this.#key }))
      socket.send(JSON.stringify({ type: 'subscribe', events: names.length ? names : EVENTS }))
    }
    socket.onmessage = (message) => frames.put(JSON.parse(message.data))
    socket.onclose = () => {
      const name = frames.any ? 'NetworkError' : 'NodeUnreachable'
      frames.end(ownError(name, `The events of the node at ${this.url} do not come.`))
    }
    try {
      while (!signal.aborted) yield await frames.next()
    } finally {
      signal.removeEventListener('abort', leave)
      socket.close()
    }
  }
}

function defaultUrl() {
  return globalThis.location?.origin ?? globalThis.process?.env?.LLMESH_URL ?? 'http://localhost:8080'
}

function withQuery(path, query) {
  const given = Object.entries(query).filter(([, value]) => value !== undefined && value !== null)
  const text = new URLSearchParams(given.map(([name, value]) => [name, String(value)])).toString()
  return text ? `${path}?${text}` : path
}

function asked({ model, input, timeout, maxFee, sort, minStake, providers }) {
  return { model, input, timeout, max_fee: maxFee, sort, min_stake: minStake, providers }
}

function withTimeout({ timeout = 30, signal, idempotencyKey }) {
  return { signal, idempotencyKey, patience: timeout * 1000 + MARGIN }
}
